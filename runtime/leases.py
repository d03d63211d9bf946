"""Takes from shared counters in small blocks, so that a request of a busy customer costs no question to Valkey.

What is taken never exceeds the limit, whatever the number of processes: a block is granted only as far as it lies
within. Beyond what is waited for already a block is at most 1/800 of the limit, so that eight processes together
leave at most 1 % of a window unused.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from runtime.windows import Window

#: Parts that a limit is dealt in at least.
_BLOCKS = 800
#: Longest block: what a process that dies may take with it of a month.
_LARGEST_BLOCK = 100
#: Windows that are remembered; the oldest is forgotten first, with what was left of its block.
_MOST_WINDOWS = 20_000
#: Windows that were found used up are not asked about again so soon.
_AGAIN_S = 1.0


class Counter(Protocol):
    async def add(self, subject: str, window: Window, amount: int = 1) -> int | None:
        """The count with `amount` more in it; None where it cannot be said."""
        ...


@dataclass(frozen=True, slots=True)
class Taken:
    """allowed: one was taken. remaining: how many are left in the window, as far as this process knows."""

    allowed: bool
    remaining: int


@dataclass(slots=True)
class _Lease:
    left: int = 0
    #: Of the window, beyond what this process has leased.
    elsewhere: int = 0
    exhausted_until_s: float = float("-inf")
    #: Who waits for a block. One question at a time serves them all, so that a burst is no flood for Valkey.
    waiting: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Leases:
    """Of one event loop."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._leases: OrderedDict[tuple[str, str], _Lease] = OrderedDict()

    async def take(self, subject: str, window: Window, limit: int, now_s: float) -> Taken | None:
        """One of the window's `limit`. None: nobody knows, so it is not counted either."""
        lease = self._lease(subject, window)
        if lease.left <= 0 and now_s >= lease.exhausted_until_s:
            lease.waiting += 1
            try:
                async with lease.lock:
                    known = await self._fill(lease, subject, window, limit, now_s)
            finally:
                lease.waiting -= 1
            if not known:
                return None
        if lease.left <= 0:
            return Taken(False, 0)
        lease.left -= 1
        return Taken(True, lease.left + lease.elsewhere)

    async def _fill(self, lease: _Lease, subject: str, window: Window, limit: int, now_s: float) -> bool:
        """Ask for a block, unless another one has meanwhile. False: nobody knows."""
        if lease.left > 0 or now_s < lease.exhausted_until_s:
            return True
        block = max(1, min(limit // _BLOCKS, _LARGEST_BLOCK), lease.waiting)
        total = await self._counter.add(subject, window, block)
        if total is None:
            return False
        lease.left += min(max(limit - (total - block), 0), block)
        lease.elsewhere = max(limit - total, 0)
        if lease.left <= 0:
            lease.exhausted_until_s = now_s + _AGAIN_S
        return True

    def give_back(self, subject: str, window: Window) -> None:
        """What was taken was not used after all."""
        lease = self._lease(subject, window)
        lease.left += 1
        lease.exhausted_until_s = float("-inf")

    def _lease(self, subject: str, window: Window) -> _Lease:
        key = (subject, window.name)
        lease = self._leases.get(key)
        if lease is None:
            lease = self._leases[key] = _Lease()
            while len(self._leases) > _MOST_WINDOWS:
                self._leases.popitem(last=False)
        return lease
