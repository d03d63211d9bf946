"""Which offsets of a partition may be committed: pure bookkeeping, one instance a partition and assignment."""

from __future__ import annotations

from collections import deque


class LowWater:
    """Tracks records that are being worked on. The committable offset never passes one that is not done.

    Records start in offset order and finish in any order. Gaps between offsets (compaction, transaction
    markers) are allowed. Every operation is O(1) amortised. Not thread-safe.
    """

    def __init__(self) -> None:
        #: Offsets from the oldest unfinished record to the newest one, in offset order.
        self._window: deque[int] = deque()
        #: Those of the window that are not done.
        self._open: set[int] = set()
        self._next: int | None = None
        self._low: int | None = None
        self._committed: int | None = None

    def __len__(self) -> int:
        """Records between the low-water mark and the newest one, finished or not."""
        return len(self._window)

    @property
    def in_flight(self) -> int:
        """Records that have started and are not done."""
        return len(self._open)

    @property
    def low(self) -> int | None:
        """The next offset to read after a restart; None as long as nothing is known."""
        return self._low

    def start(self, offset: int) -> bool:
        """Note a record as being worked on. False for one that this assignment has already seen."""
        if self._next is not None and offset < self._next:
            return False
        if self._low is None:
            self._low = self._committed = offset
        self._window.append(offset)
        self._open.add(offset)
        self._next = offset + 1
        return True

    def done(self, offset: int) -> None:
        """Note a record as finished with every output acknowledged. Unknown and repeated offsets are ignored."""
        self._open.discard(offset)
        while self._window and self._window[0] not in self._open:
            self._low = self._window.popleft() + 1

    def committable(self) -> int | None:
        """The offset to commit, that is, the next one to read after a restart; None if nothing is new."""
        return self._low if self._low != self._committed else None

    def committed(self, offset: int) -> None:
        """Remember what the broker has, so that it is not committed again. Never falls: reports may come late."""
        if self._committed is None or offset > self._committed:
            self._committed = offset
