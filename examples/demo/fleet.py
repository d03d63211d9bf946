"""One robot of the demo: it looks, asks for actions, executes the first few of the chunk, and looks again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from examples.demo.record import ACTIONS, EpisodeEnd, EpisodeRecord, Logbook, RequestRecord, RobotStatus
from robot_client import (
    ActionChunk,
    HoldRule,
    Late,
    Observation,
    Refused,
    RobotClientError,
    Unreachable,
)

#: Longest pause that a refusal's Retry-After is given before the robot looks again, seconds.
LONGEST_REFUSAL_PAUSE_S = 1.0


class World(Protocol):
    """The part of the tabletop world that a robot has to do with."""

    @property
    def success(self) -> bool: ...
    @property
    def failed(self) -> bool: ...
    def reset(self, task: str | None = None) -> str: ...
    def step(self, action: NDArray[np.floating]) -> None: ...
    def frame(self) -> NDArray[np.uint8]: ...


class Client(Protocol):
    async def infer(self, observation: Observation, *, ttl_ms: int) -> ActionChunk: ...


class Camera(Protocol):
    """Films an episode: one frame a control step."""

    def begin(self, robot_id: str, instruction: str) -> None: ...
    def frame(self, robot_id: str, pixels: Callable[[], NDArray[np.uint8]]) -> None: ...
    def end(self, robot_id: str, *, success: bool) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a robot works: actions executed of each chunk, seconds between them, and a request's time to live."""

    execute: int = 4
    control_period_s: float = 0.1
    ttl_ms: int = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Robot:
    """`clock_skew_ms` is how wrong this robot's clock is: the pipeline must not care."""

    status: RobotStatus
    client: Client
    world: World
    #: The camera's JPEG and the proprioceptive state.
    look: Callable[[], Awaitable[tuple[bytes, NDArray[np.float32]]]]
    #: Done in turn, one an episode.
    tasks: Sequence[str]
    hold: HoldRule
    pace: Pace
    logbook: Logbook
    camera: Camera
    camera_name: str = "base"
    clock_skew_ms: int = 0
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic

    async def work(self, goes_on: Callable[[], bool], episodes: int | None = None) -> None:
        """Episode after episode; begins none once `goes_on` says no or `episodes` are done."""
        number = 0
        while goes_on() and (episodes is None or number < episodes):
            task = self.tasks[number % len(self.tasks)]
            number += 1
            await self.episode(f"{self.status.robot_id}-{time.time_ns()}-{number}", task)
        self.status.state = "done"

    async def episode(self, episode_id: str, task: str) -> EpisodeRecord:
        """One episode to its end. Cancelled, it is written down as unfinished."""
        instruction = self.world.reset(task)
        status = self.status
        status.instruction, status.control_step = instruction, 0
        self.camera.begin(status.robot_id, instruction)
        self.camera.frame(status.robot_id, self.world.frame)
        run = _Run(episode_id, instruction)
        end = EpisodeEnd.UNFINISHED
        try:
            while not self._over():
                chunk = await self._ask(run)
                await (self._hold(run) if chunk is None else self._execute(run, chunk))
            end = EpisodeEnd.SUCCESS if self.world.success else EpisodeEnd.FAILURE
        finally:
            record = EpisodeRecord(
                robot_id=status.robot_id,
                transport=status.transport,
                task=task,
                instruction=instruction,
                end=end,
                control_steps=run.moved_steps,
                held_steps=run.step - run.moved_steps,
            )
            self.logbook.episodes.append(record)
            self.camera.end(status.robot_id, success=end is EpisodeEnd.SUCCESS)
        if end is EpisodeEnd.SUCCESS:
            status.succeeded += 1
        else:
            status.not_succeeded += 1
        return record

    def _over(self) -> bool:
        return self.world.success or self.world.failed

    async def _ask(self, run: _Run) -> ActionChunk | None:
        """A chunk for what the robot sees now; None where it has to hold. Each call is a new request."""
        jpeg, state = await self.look()
        observation = Observation(
            images={self.camera_name: jpeg},
            state=state,
            instruction=run.instruction,
            episode_id=run.episode_id,
            step=run.step,
            executed=np.array(run.executed, np.float32) if run.executed else None,
            captured_at_ms=time.time_ns() // 1_000_000 + self.clock_skew_ms,
        )
        run.executed.clear()
        run.pause_s = 0.0
        self.status.requests += 1
        started = self.clock()
        try:
            chunk = await self.client.infer(observation, ttl_ms=self.pace.ttl_ms)
        except RobotClientError as error:
            outcome, run.pause_s = _without_actions(error)
            self.status.state = f"holding: {outcome}"
            self._note(RequestRecord(transport=self.status.transport, outcome=outcome, round_trip_ms=self._ms(started)))
            return None
        self.status.state = "moving"
        self.status.last_latency_ms = chunk.round_trip_ms
        self._note(
            RequestRecord(
                transport=self.status.transport,
                outcome=ACTIONS,
                round_trip_ms=chunk.round_trip_ms,
                attempts=chunk.attempts,
                batch_size=chunk.batch_size,
                timings_ms=chunk.timings_ms,
            )
        )
        return chunk

    async def _execute(self, run: _Run, chunk: ActionChunk) -> None:
        for action in chunk.actions[: self.pace.execute]:
            self.world.step(action)
            run.did(action)
            run.moved_steps += 1
            self.status.control_step = run.step
            self.camera.frame(self.status.robot_id, self.world.frame)
            await self.sleep(self.pace.control_period_s)
            if self._over():
                return

    async def _hold(self, run: _Run) -> None:
        """A control step in which nothing moves: the table stays as it is, so the world is not stepped.

        A world that is stepped with the held action would count a reach as done by standing still.
        """
        held = self.hold.action(run.last)
        if held is not None:
            run.did(held)
        else:
            run.step += 1
        self.status.held_steps += 1
        self.status.control_step = run.step
        await self.sleep(max(self.pace.control_period_s, run.pause_s))

    def _note(self, record: RequestRecord) -> None:
        self.logbook.requests.append(record)

    def _ms(self, started: float) -> float:
        return (self.clock() - started) * 1000


class _Run:
    """What one episode has come to."""

    def __init__(self, episode_id: str, instruction: str) -> None:
        self.episode_id = episode_id
        self.instruction = instruction
        #: Control steps, held ones included: each observation has its own.
        self.step = 0
        self.moved_steps = 0
        self.last: NDArray[np.float32] | None = None
        #: Since the last request.
        self.executed: list[NDArray[np.float32]] = []
        self.pause_s = 0.0

    def did(self, action: NDArray[np.float32]) -> None:
        self.last = action
        self.executed.append(action)
        self.step += 1


def _without_actions(error: RobotClientError) -> tuple[str, float]:
    """What the request ended as, and how long the robot waits before it looks again, seconds."""
    if isinstance(error, Refused):
        return f"refused: {error.code}", min(error.retry_after_s, LONGEST_REFUSAL_PAUSE_S)
    if isinstance(error, Late):
        return "late", 0.0
    if isinstance(error, Unreachable):
        return "unreachable", 0.0
    return type(error).__name__, 0.0
