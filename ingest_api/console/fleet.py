"""/console: the fleet at a glance. Rows of the last minutes, and what workers and broker say right now."""

from __future__ import annotations

from typing import Any

from fastapi import Request, Response

from ingest_api.console.frame import Frame
from ingest_api.console.plots import Curve, curve
from ingest_api.console.session import ROOT, Viewer
from ingest_api.fleet_figures import WINDOWS_S, Figures, fleet_figures
from ingest_api.monitoring import gpus_document, queues_document
from ingest_api.reading import Reader
from runtime.errors import Unavailable
from runtime.group_lag import GroupLag
from runtime.workers import LiveWorkers
from schemas.cards import CardSet
from schemas.scopes import Scope


class FleetPage:
    def __init__(
        self, frame: Frame, *, reader: Reader, cards: CardSet, workers: LiveWorkers, group_lag: GroupLag
    ) -> None:
        self._frame = frame
        self._reader = reader
        self._cards = cards
        self._workers = workers
        self._group_lag = group_lag
        frame.shows(ROOT, self.show, Scope.READ)

    async def show(self, request: Request, viewer: Viewer) -> Response:
        window_s = _window_s(request.query_params.get("window", ""))
        figures: Figures | None = None
        missing = ""
        try:
            figures = await fleet_figures(self._reader, viewer.customer_id, window_s)
        except Unavailable:
            missing = "Postgres does not answer: figures of requests and robots are missing"
        queues = queues_document(self._cards, self._workers, self._group_lag)
        content: dict[str, Any] = {
            "figures": figures,
            "missing": missing,
            "curves": _curves(figures) if figures is not None else {},
            "window_s": window_s,
            "windows_s": WINDOWS_S,
            # Cards of models that nobody runs here would only be in the way.
            "deployments": [one for one in queues["deployments"] if one["live_workers"] or one["lag"]],
            "idle_deployments": sum(not (one["live_workers"] or one["lag"]) for one in queues["deployments"]),
            "groups": queues["consumer_groups"],
            "gpus": gpus_document(self._workers),
            "every": "every 3s" if request.query_params.get("live") != "off" else "",
        }
        return self._frame.respond(request, viewer, "fleet.html", part="fleet_part.html", **content)


def _window_s(text: str) -> int:
    return next((window for window in WINDOWS_S if str(window) == text), WINDOWS_S[0])


def _curves(figures: Figures) -> dict[str, Curve]:
    bins = figures.bins
    pace: list[float | None] = [each.per_s for each in bins]
    return {
        "pace": curve("requests", "1/s", pace, height=60, from_zero=True),
        "p95": curve("p95 latency", "ms", [each.p95_ms for each in bins], height=60, from_zero=True),
    }
