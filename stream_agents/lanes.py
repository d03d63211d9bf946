"""Records of one partition go in order, those of many at once: their acknowledgements are waited for together.

The order within a partition is what the sinks stand on: the offsets that they keep as marks never fall.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Hashable

log = logging.getLogger(__name__)

Work = Callable[[], Awaitable[None]]


class Lanes:
    """At most `limit` pieces of work are on their way. For one event loop.

    What has not begun when a `drain` ends is never begun: its partition may be another process's by then, whose rows it
    would overwrite.

    on_error: gets what a piece of work raises; nothing behind it on its lane is begun after that.
    """

    def __init__(self, limit: int, on_error: Callable[[Exception], None]) -> None:
        self._room = asyncio.Semaphore(limit)
        self._on_error = on_error
        self._last: dict[Hashable, asyncio.Task[bool]] = {}
        self._running: set[asyncio.Task[bool]] = set()
        self._epoch = 0

    @property
    def epoch(self) -> int:
        """Counts the drains: work belongs to that in which it was read."""
        return self._epoch

    async def start(self, lane: Hashable, work: Work, epoch: int) -> None:
        """Begin it behind what its lane has to do; returns at once unless the limit is reached.

        epoch: of when its record was read; work of an earlier one is passed over.
        """
        await self._room.acquire()
        if epoch != self._epoch:
            self._room.release()
            return
        # A task of its own: it goes on where whoever started it is cancelled.
        task = asyncio.create_task(self._follow(self._last.get(lane), work, epoch))
        self._last[lane] = task
        self._running.add(task)
        task.add_done_callback(lambda ended: self._ended(lane, ended))

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all that was begun is done, and begin a new epoch; False if the time was not enough."""
        end = asyncio.get_running_loop().time() + timeout_s
        # What waits for room begins meanwhile, and is waited for as well.
        while self._running and (left_s := end - asyncio.get_running_loop().time()) > 0:
            await asyncio.wait(set(self._running), timeout=left_s)
        self._epoch += 1
        if self._running:
            log.warning("%d records are still being worked on", len(self._running), extra={"action": "drain"})
        return not self._running

    async def _follow(self, before: asyncio.Task[bool] | None, work: Work, epoch: int) -> bool:
        if before is not None and not await asyncio.shield(before):
            return False
        if epoch != self._epoch:
            return True
        try:
            await work()
        except Exception as error:
            log.exception("an agent cannot go on", extra={"action": "agent_failed"})
            self._on_error(error)
            return False
        return True

    def _ended(self, lane: Hashable, task: asyncio.Task[bool]) -> None:
        self._running.discard(task)
        self._room.release()
        if self._last.get(lane) is task:
            del self._last[lane]
