"""Grafana dashboards as code: what a panel is, and how panels become a dashboard's JSON."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

_COLUMNS = 24
_HEIGHT = 8
#: Grafana's schema of the version that this was written for (10.0).
_SCHEMA = 38
_PROMETHEUS = {"type": "prometheus", "uid": "${prometheus}"}
_POSTGRES = {"type": "postgres", "uid": "${postgres}"}


@dataclass(frozen=True, slots=True)
class Query:
    """expr: PromQL, or SQL where the panel's source is Postgres. legend: as Grafana takes it."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """unit: Grafana's name of it. empty: why no data is no fault, where there may be none."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat", "table", "bargauge"] = "timeseries"
    source: Literal["prometheus", "postgres"] = "prometheus"
    about: str = ""
    width: int = 8
    empty: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dashboard:
    uid: str
    title: str
    about: str
    panels: tuple[Panel, ...]

    @property
    def sources(self) -> list[str]:
        return sorted({panel.source for panel in self.panels}, reverse=True)

    def document(self) -> dict[str, Any]:
        """The dashboard as Grafana provisions it."""
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.about,
            "tags": ["vlastream"],
            "schemaVersion": _SCHEMA,
            "version": 1,
            "editable": True,
            "timezone": "utc",
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": [_variable(source) for source in self.sources]},
            "panels": _placed(self.panels),
        }


def _variable(source: str) -> dict[str, Any]:
    return {"name": source, "label": source.capitalize(), "type": "datasource", "query": source, "hide": 0}


def _placed(panels: tuple[Panel, ...]) -> list[dict[str, Any]]:
    """Left to right, then down."""
    found, x, y = [], 0, 0
    for number, panel in zip(count(1), panels, strict=False):
        if x + panel.width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        found.append(_panel(number, panel, {"x": x, "y": y, "w": panel.width, "h": _HEIGHT}))
        x += panel.width
    return found


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    datasource = _PROMETHEUS if panel.source == "prometheus" else _POSTGRES
    return {
        "id": number,
        "title": panel.title,
        "description": " ".join(filter(None, (panel.about, panel.empty and f"Empty where {panel.empty}."))),
        "type": panel.kind,
        "datasource": datasource,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": _options(panel.kind),
        "targets": [_target(letter, query, panel) for letter, query in zip("ABCDEFGH", panel.queries, strict=False)],
    }


def _options(kind: str) -> dict[str, Any]:
    reduced = {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    legend = {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}}
    by_kind: dict[str, dict[str, Any]] = {
        "timeseries": legend,
        "stat": reduced,
        "bargauge": {**reduced, "orientation": "horizontal"},
    }
    return by_kind.get(kind, {})


def _target(letter: str, query: Query, panel: Panel) -> dict[str, Any]:
    if panel.source == "postgres":
        shape = "table" if panel.kind in ("table", "bargauge") else "time_series"
        return {"refId": letter, "datasource": _POSTGRES, "rawSql": query.expr, "rawQuery": True, "format": shape}
    instant = panel.kind != "timeseries"
    target = {"refId": letter, "datasource": _PROMETHEUS, "expr": query.expr, "legendFormat": query.legend}
    shape = "table" if panel.kind == "table" else "time_series"
    return {**target, "instant": instant, "range": not instant, "format": shape}
