"""Two ways in which Faust stands still without a word, and how a gate tells them from having nothing to do.

A table's recovery that has stopped, of which Faust itself only warns ("No event received for active tp"), ends the
gate. Seen with Faust 0.15.3 after two rebalances within seconds: the changelog's partitions were never fetched, for
minutes and without an error, and the robots of those partitions waited. One way into it is mended
(`seek_uncommitted_too`); this is for those that nobody knows. A new process recovers within seconds, and nothing is
lost: what was not committed is read again.

Records that Faust has dropped at the end of a partition: of a gap, the next record tells (`Progress.missed`), but a
robot that waits for an answer sends none. Those are sought back to. The one way into it that is known is mended too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Generic, TypeVar

Partition = TypeVar("Partition", bound=Hashable)

#: Longer than Kafka takes to come back from a kill (14-19 s here), so that its absence alone ends no gate.
STALLED_S = 25.0
#: An agent that is not held up gets the next record within milliseconds.
DROPPED_S = 2.0
#: How much longer the same offsets are waited for each time that going back to them has brought none.
_LONGER = 4.0


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


class TailGuard(Generic[Partition]):
    """Tells records that were dropped from those that are about to come. Not thread-safe."""

    def __init__(self, limit_s: float = DROPPED_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        #: Offsets, since when, and for how long they are waited for.
        self._since: dict[Partition, tuple[range, float, float]] = {}

    def dropped(self, unread: Mapping[Partition, range]) -> dict[Partition, int]:
        """The offset to go back to where the same offsets have been unread for the limit.

        unread: offsets up to a partition's end that no agent got, while no agent is held up. They may hold no record
        at all (transaction markers), which is why they are named less and less often.
        """
        now_s, before, due = self._clock(), self._since, {}
        self._since = {}
        for partition, offsets in unread.items():
            seen, since_s, limit_s = before.get(partition, (offsets, now_s, self._limit_s))
            if seen != offsets:
                since_s, limit_s = now_s, self._limit_s
            elif offsets and now_s - since_s >= limit_s:
                due[partition] = offsets.start
                since_s, limit_s = now_s, limit_s * _LONGER
            self._since[partition] = (offsets, since_s, limit_s)
        return due


def recovery_of(app: Any) -> tuple[bool, Hashable]:
    """Whether a Faust app recovers its tables, and how far it is: the assignment's generation and the offsets read."""
    recovery = app.tables.recovery
    offsets = tuple(sorted((str(tp), offset) for tp, offset in recovery.active_offsets.items()))
    return bool(app.in_recovery), (app.consumer_generation_id, offsets)
