"""Queries that several dashboards ask in the same form, and what an empty panel means."""

from __future__ import annotations

from deploy.grafana.panels import Query

NO_GPU = "no worker has a GPU"
NONE_SO_FAR = "it has not happened"


def quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    group, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    return tuple(
        Query(f"histogram_quantile({q}, sum by ({group}) (rate({metric}_bucket[5m])))", f"p{round(q * 100)}{legend}")
        for q in (0.5, 0.95, 0.99)
    )


def rate(metric: str, by: str, selector: str = "") -> tuple[Query, ...]:
    return (Query(f"sum by ({by}) (rate({metric}{selector}[5m]))", f"{{{{{by}}}}}"),)


def gauge(metric: str, by: str) -> tuple[Query, ...]:
    return (Query(f"max by ({by}) ({metric})", " ".join(f"{{{{{label}}}}}" for label in by.split(", "))),)


def sql(statement: str) -> tuple[Query, ...]:
    return (Query(" ".join(statement.split())),)
