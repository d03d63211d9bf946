"""`python -m runtime.metrics_page > docs/metrics.md`: the catalogue of metrics as a page."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.metrics import Metrics, Section

_HEAD = """# Metrics

Every role serves these at `/metrics` on its own port (the API on its only one); `/metrics/federate` on the API merges
those of all roles. Seconds, bytes and `_total`; no label takes a robot or a request as its value. A family without a
sample has not happened yet. `make docs` writes this page from `runtime/metrics.py`.

Histograms are queried by their `_bucket`, `_sum` and `_count` series. Each process besides has `process_*` (CPU,
memory, open files, start time) of the Prometheus client. [Alerts](runbook.md) and the dashboards of `deploy/grafana`
stand on these names.
"""


def page(sections: list[Section]) -> str:
    return "\n".join([_HEAD, *(line for section in sections for line in _lines(section))])


def _lines(section: Section) -> Iterator[str]:
    yield f"## {section.title}\n"
    yield f"Exported by: {section.source}.\n"
    yield "| metric | type | labels | meaning |"
    yield "|---|---|---|---|"
    for family in section.families:
        labels = ", ".join(f"`{label}`" for label in family.labels)
        yield f"| `{family.name}` | {family.kind} | {labels} | {family.meaning} |"
    yield ""


if __name__ == "__main__":
    print(page(Metrics().catalogue), end="")
