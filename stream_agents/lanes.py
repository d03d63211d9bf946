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

    on_error: gets what a piece of work raises; nothing behind it on its lane is begun after that.
    """

    def __init__(self, limit: int, on_error: Callable[[Exception], None]) -> None:
        self._room = asyncio.Semaphore(limit)
        self._on_error = on_error
        self._last: dict[Hashable, asyncio.Task[bool]] = {}
        self._running: set[asyncio.Task[bool]] = set()

    async def start(self, lane: Hashable, work: Work) -> None:
        """Begin it behind what its lane has to do; returns at once unless the limit is reached."""
        await self._room.acquire()
        # A task of its own: it goes on where whoever started it is cancelled.
        task = asyncio.create_task(self._follow(self._last.get(lane), work))
        self._last[lane] = task
        self._running.add(task)
        task.add_done_callback(lambda ended: self._ended(lane, ended))

    @property
    def idle(self) -> bool:
        """Whether nothing that was begun is unfinished."""
        return not self._running

    async def drain(self, timeout_s: float) -> bool:
        """Wait until all that was begun is done; False if the time was not enough."""
        if self._running:
            _, left = await asyncio.wait(set(self._running), timeout=timeout_s)
            if left:
                log.warning("%d records are still being worked on", len(left), extra={"action": "drain"})
            return not left
        return True

    async def _follow(self, before: asyncio.Task[bool] | None, work: Work) -> bool:
        if before is not None and not await asyncio.shield(before):
            return False
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
