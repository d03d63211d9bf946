"""Keeps Faust from losing messages when partitions move.

As shipped, Faust 0.15.3 resumes partitions after a table's recovery while the flow is still active; its
fetcher then fills the stream queues, and `flow_control.resume()` clears them (`clear_on_resume`). What was
in them is gone, and later acknowledgements commit past it (tables/recovery.py, `on_recovery_completed`).
The mend stops the flow in a recover callback of every table; Faust resumes it right after.

What a fetch brings while the flow is stopped is dropped, and made good by a seek to the committed offsets
(transport/consumer.py, `getmany`). aiokafka's `seek_to_committed` leaves a partition that has none where it is: a
new partition's first records are lost that way, and a changelog's, for which the recovery then waits for ever. So
those are sought back as well: a changelog to what the recovery has got, a new partition to its beginning. Besides,
every agent checks that offsets follow one another, and reads again what it was not given.

Nor are Faust's commits used as they are: it acknowledges events that its streams only pass over (streams.py,
`skipped_value`), counts what it never handed on as acknowledged (transport/consumer.py, `_add_gap`), and
passes one unfinished event (`_new_offset`). `Progress` decides instead, from what the agents have finished.

Its flush before a commit is no proof that the changelog has been written: it waits for a tenth of a second, and
aiokafka's counts batches that failed as done. An event is finished once its own changelog records are acknowledged
(`ChangelogWrites`); else a row could be lost whose record is never read again.
"""

# ruff: noqa: SLF001 - Faust offers no other way in.
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import Any

#: Topic and partition.
Place = tuple[str, int]


def hold_flow_during_recovery(app: Any, table: Any, restored: Callable[[], None]) -> None:
    """Install the mend on a table; `restored` runs once its rows are back and before any agent goes on."""

    @table.on_recover  # type: ignore[untyped-decorator] # Faust is untyped
    async def hold_flow(*_: object) -> None:
        app.flow_control.suspend()
        app.consumer.stop_flow()
        restored()


def seek_uncommitted_too(app: Any) -> None:
    """Install the mend of records dropped from partitions without a committed offset, before the consumer starts."""
    consumer = app.consumer
    seek_committed = consumer.perform_seek

    async def seek() -> None:
        await seek_committed()
        changelogs = app.tables.changelog_topics
        # What the seek to committed offsets has noted as the offset to go on from.
        new = [tp for tp in consumer.assignment() if tp.topic not in changelogs and not consumer._read_offset[tp]]
        if new:
            await consumer.seek_wait(await consumer.earliest_offsets(*new))
        if app.in_recovery:
            got = app.tables.recovery.active_offsets
            # What it has got already is read twice and passed over.
            await consumer.seek_wait({tp: max(offset, 0) for tp, offset in got.items() if offset is not None})

    consumer.perform_seek = seek


def wait_before_partitions_leave(app: Any, drain: Callable[..., Awaitable[None]]) -> None:
    """Finish what the agents have begun before partitions are given up, and before the app ends.

    Faust's own wait counts acknowledged events, which is not what counts here (`Progress`).
    """
    app._consumer_wait_empty = drain


class ChangelogWrites:
    """Which changelog records a piece of an agent's work has caused. For one event loop."""

    def __init__(self, table: Any) -> None:
        """Stand before the one function by which a Faust table writes its changelog."""
        #: Of the task that handles a record.
        self._mine: ContextVar[list[asyncio.Future[Any]]] = ContextVar("changelog writes")
        send = table.send_changelog

        def send_and_note(*args: Any, **options: Any) -> Any:
            sent = send(*args, **options)
            self._mine.get().append(sent)
            return sent

        table.send_changelog = send_and_note

    def begin(self) -> list[asyncio.Future[Any]]:
        """The writes of this task from now on, as they come: each is done when the broker has it."""
        writes: list[asyncio.Future[Any]] = []
        self._mine.set(writes)
        return writes


def committed_offset(app: Any, partition: Any) -> int | None:
    """The offset to read next that the group has for a partition; None if it has none."""
    offset = app.consumer._committed_offset.get(partition)
    return int(offset) if offset is not None else None


def known_end(app: Any, partition: Any) -> int | None:
    """The end of a partition as the last fetch told it; None where it was not fetched yet, or has just moved away."""
    try:
        end = app.consumer.highwater(partition)
    except (AssertionError, AttributeError):
        # aiokafka's way of saying that the partition is not assigned; it moves in another thread.
        return None
    return int(end) if end is not None else None


class Progress:
    """What the agents have got and finished of each partition. Pure bookkeeping, not thread-safe.

    An offset is committed only where every one before it, from the committed one on, is finished or is known
    to hold no record (transaction markers, and what retention has deleted).
    """

    def __init__(self) -> None:
        self._next: dict[Place, int] = {}
        self._finished: dict[Place, set[int]] = {}
        self._empty: dict[Place, dict[int, int]] = {}

    def moved(self, owned: set[int]) -> None:
        """Partitions were assigned: each is read again from its committed offset."""
        self._next.clear()
        for kept in (self._finished, self._empty):
            for place in [place for place in kept if place[1] not in owned]:
                del kept[place]

    def missed(self, place: Place, offset: int, committed: int | None) -> range:
        """Note an event that an agent got; the offsets that should have come before it and did not.

        committed: the offset to read next that the group has for the partition, None if it has none.
        """
        expected = self._next.get(place, committed or 0)
        self._next[place] = offset + 1
        return range(expected, offset)

    def unread(self, place: Place, committed: int | None, end: int | None) -> range:
        """The offsets that no agent got yet, up to the end of the log as the consumer knows it."""
        return range(self._next.get(place, committed or 0), end or 0)

    def pass_over(self, place: Place, missed: range, found: Sequence[int]) -> None:
        """Note which of the missed offsets hold no record: all but those found, which are in order."""
        start = missed.start
        for offset in (*found, missed.stop):
            if offset > start:
                self._empty.setdefault(place, {})[start] = offset
            start = offset + 1

    def finish(self, place: Place, offset: int) -> None:
        """Note an event whose every output is acknowledged by the broker."""
        self._finished.setdefault(place, set()).add(offset)

    def committable(self, place: Place, committed: int | None) -> int | None:
        """The offset to commit, that is, the next one to read after a restart; None if nothing is new.

        committed: as the broker has it. A commit that failed is offered again.
        """
        start = low = committed or 0
        finished, empty = self._finished.get(place, set()), self._empty.get(place, {})
        finished -= {offset for offset in finished if offset < start}
        for offset in [offset for offset in empty if empty[offset] <= start]:
            del empty[offset]
        while low in finished or low in empty:
            low = empty.get(low, low + 1)
        return low if low != start else None

    def install(self, consumer: Any) -> None:
        """Stand before the one function that says what Faust's consumer commits."""

        def new_offset(partition: Any) -> int | None:
            # What Faust itself has noted is of no use, and would grow.
            consumer._acked[partition].clear()
            consumer._acked_index[partition].clear()
            consumer._gap.pop(partition, None)
            return self.committable((partition.topic, partition.partition), consumer._committed_offset[partition])

        consumer._new_offset = new_offset
