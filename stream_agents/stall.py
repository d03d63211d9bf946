"""Ends a gate whose table recovery has stopped, of which Faust itself only warns ("No event received for active tp").

Seen with Faust 0.15.3 after two rebalances within seconds: the changelog's partitions were never fetched, for
minutes and without an error, and the robots of those partitions waited. One way into it is mended
(`seek_changelogs_back_too`); this is for those that nobody knows. A new process recovers within seconds, and nothing is
lost: what was not committed is read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any

#: Longer than Kafka takes to come back from a kill (14-19 s here), so that its absence alone ends no gate.
STALLED_S = 25.0


class StallGuard:
    """Tells a recovery that goes nowhere from a slow one. Not thread-safe."""

    def __init__(self, limit_s: float = STALLED_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._seen: Hashable = None
        self._since = clock()

    def stalled(self, recovering: bool, progress: Hashable) -> bool:
        """Whether it has been recovering for the limit without any progress, which is whatever changes by it."""
        seen = (recovering, progress)
        if seen != self._seen:
            self._seen, self._since = seen, self._clock()
        return recovering and self._clock() - self._since >= self._limit_s


def recovery_of(app: Any) -> tuple[bool, Hashable]:
    """Whether a Faust app recovers its tables, and how far it is: the assignment's generation and the offsets read."""
    recovery = app.tables.recovery
    offsets = tuple(sorted((str(tp), offset) for tp, offset in recovery.active_offsets.items()))
    return bool(app.in_recovery), (app.consumer_generation_id, offsets)
