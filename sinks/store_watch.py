"""Whether a sink's store answers, and when it is asked again: one pause for everything that wants it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from runtime.errors import Unavailable
from runtime.metrics import Metrics

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


class StoreWatch:
    """Told of each success and failure by the thread that uses the store; `seen` may be asked from any."""

    def __init__(self, sink: str, server: str, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._sink = sink
        self._server = server
        self._metrics = metrics
        self._clock = clock
        self._retry_at = 0.0
        self._pause_s = 0.0
        self._seen = threading.Event()

    @property
    def seen(self) -> bool:
        """Whether it has answered once."""
        return self._seen.is_set()

    @property
    def pausing(self) -> bool:
        """Whether it failed so lately that it is left alone."""
        return self._clock() < self._retry_at

    def away(self, error: Unavailable) -> None:
        """It failed. Each failure in a row doubles the pause."""
        if self._pause_s == 0.0:
            log.warning("waiting for %s: %s", self._server, error, extra={"action": "store_away"})
        self._metrics.dependency_up.labels(self._server).set(0)
        self._metrics.retries.labels(self._sink, "store_away").inc()
        self._pause_s = min(max(self._pause_s * 2, FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        self._retry_at = self._clock() + self._pause_s

    def answers(self) -> None:
        if self._pause_s > 0.0:
            log.info("%s answers again", self._server, extra={"action": "store_back"})
        self._metrics.dependency_up.labels(self._server).set(1)
        self._pause_s = self._retry_at = 0.0
        self._seen.set()
