"""Keeps Faust from losing messages when partitions move.

As shipped, Faust 0.15.3 resumes partitions after a table's recovery while the flow is still active; its
fetcher then fills the stream queues, and `flow_control.resume()` clears them (`clear_on_resume`). What was
in them is gone, and later acknowledgements commit past it (tables/recovery.py, `on_recovery_completed`).

The mend stops the flow in a recover callback of every table; Faust resumes it right after. The guard is the
proof: on topics that are neither compacted nor transactional a partition's offsets are contiguous, so an
agent that sees a gap has lost something and must end before anything is acknowledged.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)


def hold_flow_during_recovery(app: Any, table: Any, restored: Callable[[], None]) -> None:
    """Install the mend on a table; `restored` runs once its rows are back and before any agent goes on."""

    @table.on_recover  # type: ignore[untyped-decorator] # Faust is untyped
    async def hold_flow(*_: object) -> None:
        app.flow_control.suspend()
        app.consumer.stop_flow()
        restored()


class OffsetGuard:
    """Sees every offset that an agent gets. One instance an agent; not thread-safe."""

    def __init__(self, on_gap: Callable[[str], None]) -> None:
        self._on_gap = on_gap
        self._last: dict[tuple[str, int], int] = {}

    def check(self, topic: str, partition: int, offset: int) -> None:
        """Call `on_gap` where records were skipped since the last event of this assignment."""
        last = self._last.get((topic, partition))
        self._last[(topic, partition)] = offset
        if last is not None and offset > last + 1:
            self._on_gap(f"{topic}/{partition}: {offset} follows {last}, {offset - last - 1} records were lost")

    def reset(self) -> None:
        """Partitions moved: the next offset of each may be any."""
        self._last.clear()


class FinishedOnly:
    """Lets Faust acknowledge only what an agent has finished.

    Faust also acknowledges what its streams pass over: events of an older generation, and those that arrive while
    the flow is stopped (streams.py, `skipped_value`). At a shutdown its last commit would take them in, unread.
    """

    def __init__(self) -> None:
        self._finished: set[tuple[str, int, int]] = set()

    def finish(self, topic: str, partition: int, offset: int) -> None:
        self._finished.add((topic, partition, offset))

    def install(self, consumer: Any) -> None:
        """Stand before the consumer's `ack`, the one place that every acknowledgement passes."""
        acknowledge = consumer.ack

        def ack(message: Any) -> bool:
            place = (message.topic, message.partition, message.offset)
            if place not in self._finished:
                return False
            self._finished.discard(place)
            return bool(acknowledge(message))

        consumer.ack = ack
