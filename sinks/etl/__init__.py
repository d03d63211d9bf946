"""From rows to analytics: four pipelines, each of one UTC day, each with the same result however often it runs."""
