"""The robots' cameras, in a process of their own: drawing a scene must not count as somebody's latency."""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from concurrent.futures import ProcessPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from examples.tabletop.render import Scene, encode_jpeg, render
from examples.tabletop.world import TabletopWorld

SIDE_PX = 224


class Cameras:
    """Use as `with`. One process draws for all robots, in the order in which they look."""

    def __init__(self) -> None:
        # Spawned, because a fork would copy the threads' locks of the Kafka clients in this process.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_leave_interrupts_to_the_parent)

    def __enter__(self) -> Self:
        self._pool.submit(draw, TabletopWorld(seed=0).scene()).result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    async def look(self, world: TabletopWorld) -> tuple[bytes, NDArray[np.float32]]:
        """JPEG of 224 x 224 pixels and the proprioceptive state (8,) of the same moment."""
        state, scene = world.state(), world.scene()
        return await asyncio.get_running_loop().run_in_executor(self._pool, draw, scene), state


def draw(scene: Scene) -> bytes:
    """JPEG of the first world of a scene."""
    return encode_jpeg(render(scene, SIDE_PX)[0])


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
