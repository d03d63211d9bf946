"""Which GPU workers are alive, from their heartbeats. Thread-safe: a view writes, request handlers read."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from schemas.messages import WorkerHeartbeat

#: Workers that were silent for so many timeouts are forgotten: each restart makes a worker of another name.
_FORGOTTEN_AFTER = 20


class LiveWorkers:
    """A worker is live for `timeout_s` after its last heartbeat reached us, until its tombstone."""

    def __init__(
        self, timeout_s: float, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time
    ):
        self._timeout_s = timeout_s
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[WorkerHeartbeat, float]] = {}

    def update(self, key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        """Take one record of vla.workers.v1. Its age is the broker's append time against our clock, at least 0."""
        worker_id = key.decode("utf-8", "replace")
        with self._lock:
            if value is None:
                self._seen.pop(worker_id, None)
                return
            age_s = max(self._now() - appended_at_ms / 1000, 0.0)
            self._seen[worker_id] = (WorkerHeartbeat.FromString(value), self._clock() - age_s)
            oldest = self._clock() - _FORGOTTEN_AFTER * self._timeout_s
            self._seen = {name: entry for name, entry in self._seen.items() if entry[1] >= oldest}

    def live(self, deployment: str | None = None) -> list[WorkerHeartbeat]:
        """Heartbeats of live workers, of one deployment or of all, by worker id."""
        oldest = self._clock() - self._timeout_s
        with self._lock:
            beats = [beat for beat, seen in self._seen.values() if seen >= oldest]
        chosen = (beat for beat in beats if deployment is None or beat.deployment == deployment)
        return sorted(chosen, key=lambda beat: beat.worker_id)
