"""How far a sink is, and what waits to be written: pure bookkeeping, one buffer for each partition.

Exactly once rests on two facts. A mark moves only together with the rows it speaks of. And the numbers within
a series (the offsets of the records that caused ours) never fall, so that a record whose number is not above
the last of its series is a repeat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

RowT = TypeVar("RowT")


@dataclass(frozen=True, slots=True)
class Partition:
    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.number}"


@dataclass(frozen=True, slots=True)
class Mark:
    """What stands in the store. Two marks that are equal say that nobody wrote in between."""

    #: The first offset that is not written.
    next_offset: int = 0
    #: Series -> highest number written.
    seen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry(Generic[RowT]):
    """One record, decoded."""

    offset: int
    row: RowT
    #: The series that this record belongs to and its number in it.
    series: str
    number: int
    size_bytes: int
    #: Broker's append time, Unix epoch in milliseconds.
    timestamp_ms: int
    #: Rows with different cuts do not share a batch.
    cut: str = ""


@dataclass(frozen=True, slots=True)
class Batch(Generic[RowT]):
    """Rows to write at once, and the mark that stands for them afterwards."""

    entries: tuple[Entry[RowT], ...]
    #: What the store must say before the write, else somebody else has written.
    before: Mark
    after: Mark

    @property
    def rows(self) -> list[RowT]:
        return [entry.row for entry in self.entries]


@dataclass(frozen=True, slots=True)
class Limits:
    """A batch is written when it reaches one of these."""

    rows: int
    size_bytes: int
    age_s: float


class Added(Enum):
    YES = "yes"
    #: Its offset is below the position: read again after a seek or a rebalance.
    BEHIND = "behind"
    #: Its number is not above the last one of its series: written again upstream.
    REPEAT = "repeat"


class Buffer(Generic[RowT]):
    """What one partition has read since its mark. Not thread-safe."""

    def __init__(self, mark: Mark, position: int, limits: Limits) -> None:
        self._mark = mark
        self._limits = limits
        #: The next offset to take.
        self.position = position
        self._seen = dict(mark.seen)
        self._entries: deque[Entry[RowT]] = deque()
        self._since_s: float | None = None
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: Entry[RowT], now_s: float) -> Added:
        """Take a record, in offset order. `now_s` is of any monotonic clock."""
        if entry.offset < self.position:
            return Added.BEHIND
        self.position = entry.offset + 1
        if entry.number <= self._seen.get(entry.series, -1):
            return Added.REPEAT
        self._seen[entry.series] = entry.number
        self._entries.append(entry)
        self.size_bytes += entry.size_bytes
        if self._since_s is None:
            self._since_s = now_s
        return Added.YES

    def skip(self, offset: int) -> None:
        """Pass over a record that becomes no row."""
        self.position = max(self.position, offset + 1)

    @property
    def full(self) -> bool:
        """Whether there is a whole batch, so that nothing is gained by reading on."""
        return bool(self._entries) and (
            len(self._entries) >= self._limits.rows
            or self.size_bytes >= self._limits.size_bytes
            or self._entries[0].cut != self._entries[-1].cut
        )

    def due(self, now_s: float) -> bool:
        return self.full or (self._since_s is not None and now_s - self._since_s >= self._limits.age_s)

    def batch(self) -> Batch[RowT] | None:
        """The oldest rows, within the limits; None if there are none. Stays in the buffer until `written`."""
        if not self._entries:
            return None
        chosen: list[Entry[RowT]] = []
        size = 0
        for entry in self._entries:
            size += entry.size_bytes
            too_much = len(chosen) >= self._limits.rows or size > self._limits.size_bytes
            if chosen and (too_much or entry.cut != chosen[0].cut):
                break
            chosen.append(entry)
        whole = len(chosen) == len(self._entries)
        seen = dict(self._mark.seen)
        for entry in chosen:
            seen[entry.series] = entry.number
        # What was passed over behind the last row is settled too, and need not be read again.
        next_offset = self.position if whole else chosen[-1].offset + 1
        return Batch(tuple(chosen), self._mark, Mark(next_offset, seen))

    def written(self, batch: Batch[RowT], now_s: float) -> None:
        """The batch is at rest."""
        for entry in batch.entries:
            self._entries.popleft()
            self.size_bytes -= entry.size_bytes
        self._mark = batch.after
        self._since_s = now_s if self._entries else None

    @property
    def committable(self) -> int:
        """The first offset that a restart must read: everything before it is written or settled."""
        return self._entries[0].offset if self._entries else self.position
