"""GET /health: every server behind this API, with its state and how long it took to answer; workers; consumers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ingest_api.monitoring import oldest_age_s
from runtime.errors import VlastreamError
from runtime.group_lag import GroupLag
from runtime.metrics import Metrics
from runtime.workers import LiveWorkers
from schemas.cards import CardSet, ModelCard

_PROBE_TIMEOUT_S = 4.0
#: /health needs no key, so what it found is kept for a moment.
_KEPT_S = 1.0
#: A consumer group that has left a record for so long is late: rows come some seconds after their outcomes.
_LATE_S = 60.0
#: What the broker last said of its groups is no longer believed after this time.
_LOOK_TOO_OLD_S = 30.0


@dataclass(frozen=True, slots=True)
class Dependency:
    """A server; `probe` blocks and raises if it does not answer. Without a vital one nothing can be answered."""

    probe: Callable[[], None]
    vital: bool
    #: What is lost while it is away.
    without: str


class Health:
    def __init__(
        self,
        *,
        dependencies: Mapping[str, Dependency],
        waiting_for: Callable[[], list[str]],
        workers: LiveWorkers,
        cards: CardSet,
        metrics: Metrics,
        group_lag: GroupLag,
        weights_of: Callable[[str], Mapping[str, float] | None] = lambda model: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._group_lag = group_lag
        self._clock = clock
        self._started_at = clock()
        self._dependencies = dependencies
        self._waiting_for = waiting_for
        self._workers = workers
        self._cards = cards
        self._metrics = metrics
        self._weights_of = weights_of
        self._lock = asyncio.Lock()
        self._found: dict[str, Any] = {}
        self._found_at = float("-inf")

    def waiting_for(self) -> list[str]:
        """What this process waits for before it can answer; empty when ready."""
        return self._waiting_for()

    async def report(self) -> tuple[int, dict[str, Any]]:
        """HTTP status and body: `ok` and `degraded` are 200, `down` is 503."""
        async with self._lock:
            if time.monotonic() - self._found_at >= _KEPT_S:
                names = list(self._dependencies)
                found = await asyncio.gather(*(self._probe(name, self._dependencies[name]) for name in names))
                self._found = dict(zip(names, found, strict=True))
                self._found_at = time.monotonic()
        dependencies = {**self._found, "workers": self._worker_state(), "consumers": self._consumer_state()}
        waiting = self._waiting_for()
        states = {entry["status"] for entry in dependencies.values()}
        status = "down" if waiting or "down" in states else "degraded" if "degraded" in states else "ok"
        uptime_s = round(self._clock() - self._started_at, 1)
        body = {"status": status, "uptime_s": uptime_s, "waiting_for": waiting, "dependencies": dependencies}
        return (503 if status == "down" else 200), body

    async def _probe(self, name: str, dependency: Dependency) -> dict[str, Any]:
        started = time.perf_counter()
        try:
            await asyncio.wait_for(asyncio.to_thread(dependency.probe), _PROBE_TIMEOUT_S)
        except (VlastreamError, TimeoutError) as error:
            self._metrics.dependency_up.labels(name).set(0)
            # The reason may name hosts and users; it is in the log.
            detail = "no answer in time" if isinstance(error, TimeoutError) else "does not answer"
            return {
                "status": "down" if dependency.vital else "degraded",
                "latency_ms": None,
                "detail": f"{detail}: {dependency.without}",
            }
        self._metrics.dependency_up.labels(name).set(1)
        return {"status": "ok", "latency_ms": round((time.perf_counter() - started) * 1000, 3), "detail": ""}

    def _is_dealt(self, card: ModelCard) -> bool:
        weights = self._weights_of(card.model)
        return (card.traffic if weights is None else weights.get(card.deployment, 0.0)) > 0

    def _consumer_state(self) -> dict[str, Any]:
        """`unknown` until the groups were looked at, some seconds after the start; that is no ill health."""
        lags = self._group_lag.all() if self._group_lag.age_s <= _LOOK_TOO_OLD_S else {}
        late = [group for group, lag in lags.items() if lag.oldest_age_s is not None and lag.oldest_age_s > _LATE_S]
        return {
            "status": "degraded" if late else "ok" if lags else "unknown",
            "lag": {group: lag.records for group, lag in lags.items()},
            "oldest_age_s": {group: oldest_age_s(lag) for group, lag in lags.items()},
            "detail": f"late by more than {_LATE_S:.0f} s: {', '.join(late)}" if late else "",
        }

    def _worker_state(self) -> dict[str, Any]:
        live = {card.deployment: len(self._workers.live(card.deployment)) for card in self._cards.models}
        # One that gets no robots needs no worker.
        missing = [card.deployment for card in self._cards.models if self._is_dealt(card) and not live[card.deployment]]
        status = "ok" if not missing else "degraded" if any(live.values()) else "down"
        detail = f"no live worker: {', '.join(missing)}" if missing else ""
        return {"status": status, "live": live, "detail": detail}
