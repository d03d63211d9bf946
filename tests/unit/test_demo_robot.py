"""The demo's robot loop with a scripted client and a world that counts its steps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.demo.fleet import Pace, Robot
from examples.demo.record import ACTIONS, EpisodeEnd, Logbook, RobotStatus
from robot_client import ActionChunk, HoldRule, Late, Observation, Refused, RobotClientError, Unreachable
from tests.unit.robot_client_case import JPEG, ManualClock, chunk

HOLD = HoldRule((True,) * 6 + (False,))


class CountingWorld:
    """Succeeds after `goal` steps; fails after `limit`."""

    def __init__(self, goal: int, limit: int = 1000) -> None:
        self._goal, self._limit = goal, limit
        self.actions: list[NDArray[np.float32]] = []

    @property
    def success(self) -> bool:
        return len(self.actions) >= self._goal

    @property
    def failed(self) -> bool:
        return len(self.actions) >= self._limit

    def reset(self, task: str | None = None) -> str:
        self.actions = []
        return "pick up the red block"

    async def look(self) -> tuple[bytes, NDArray[np.float32]]:
        return JPEG, np.zeros(8, np.float32)

    def step(self, action: NDArray[np.floating]) -> None:
        self.actions.append(action.astype(np.float32))

    def frame(self) -> NDArray[np.uint8]:
        return np.zeros((64, 64, 3), np.uint8)


class ScriptedClient:
    """Gives each scripted answer once, chunks from then on; keeps the observations."""

    def __init__(self, answers: Iterable[RobotClientError | None] = ()) -> None:
        self._answers = iter(answers)
        self.observations: list[Observation] = []

    async def infer(self, observation: Observation, *, ttl_ms: int) -> ActionChunk:
        self.observations.append(observation)
        error = next(self._answers, None)
        if error is not None:
            raise error
        return chunk()


class NoCamera:
    def __init__(self) -> None:
        self.ended: list[bool] = []

    def begin(self, robot_id: str, instruction: str) -> None: ...
    def frame(self, robot_id: str, pixels: Callable[[], NDArray[np.uint8]]) -> None: ...
    def end(self, robot_id: str, *, success: bool) -> None:
        self.ended.append(success)


def robot(world: CountingWorld, client: ScriptedClient, clock: ManualClock, **pace: int) -> Robot:
    return Robot(
        status=RobotStatus("arm-1", "REST"),
        client=client,
        world=world,
        look=world.look,
        tasks=("pick", "reach"),
        hold=HOLD,
        pace=Pace(**pace),
        logbook=Logbook(),
        camera=NoCamera(),
        sleep=clock.sleep,
        clock=clock,
    )


def refused(code: str = "no_live_worker", retry_after_s: float = 0.0) -> Refused:
    return Refused("no", code=code, status=503, request_id="r", recorded=True, retry_after_s=retry_after_s)


async def test_a_robot_executes_the_first_actions_of_each_chunk_and_looks_again() -> None:
    world, client, clock = CountingWorld(goal=10), ScriptedClient(), ManualClock()
    record = await robot(world, client, clock, execute=4).episode("e-1", "pick")
    assert record.end is EpisodeEnd.SUCCESS
    assert [o.step for o in client.observations] == [0, 4, 8]
    assert len(world.actions) == 10
    np.testing.assert_array_equal(world.actions[5], chunk().actions[1])
    assert {o.episode_id for o in client.observations} == {"e-1"}


async def test_each_request_says_what_was_executed_since_the_last() -> None:
    client = ScriptedClient([None, refused()])
    await robot(CountingWorld(goal=8), client, ManualClock(), execute=4).episode("e-1", "pick")
    first, second, after_hold = client.observations
    assert first.executed is None
    np.testing.assert_array_equal(second.executed, chunk().actions[:4])
    held = np.where(HOLD.moves, 0, chunk().actions[3]).astype(np.float32)
    np.testing.assert_array_equal(after_hold.executed, [held])


@pytest.mark.parametrize(
    "error", [refused(), Late("late", request_id="r"), Unreachable("away", request_id="r"), refused("unsafe_action")]
)
async def test_without_actions_the_robot_holds_and_asks_anew(error: RobotClientError) -> None:
    world, client, clock = CountingWorld(goal=4), ScriptedClient([error, error]), ManualClock()
    arm = robot(world, client, clock, execute=4)
    record = await arm.episode("e-1", "pick")
    assert record.end is EpisodeEnd.SUCCESS
    assert (record.control_steps, record.held_steps) == (4, 2)
    # Each look has a step of its own, so no request is a duplicate of the one before.
    assert len({o.step for o in client.observations}) == 3
    assert len(world.actions) == 4
    assert arm.logbook.outcomes()[ACTIONS] == 1
    assert len(clock.pauses_s) >= 2
    assert min(clock.pauses_s) >= arm.pace.control_period_s


async def test_a_refusal_that_names_a_time_is_given_it_up_to_a_second() -> None:
    clock = ManualClock()
    client = ScriptedClient([refused(retry_after_s=0.7), refused(retry_after_s=30)])
    await robot(CountingWorld(goal=1), client, clock).episode("e-1", "pick")
    assert clock.pauses_s[:2] == [0.7, 1.0]


async def test_an_episode_without_success_ends_as_a_failure() -> None:
    failed = await robot(CountingWorld(goal=999, limit=6), ScriptedClient(), ManualClock()).episode("e", "pick")
    assert (failed.end, failed.control_steps) == (EpisodeEnd.FAILURE, 6)


async def test_an_episode_that_is_cut_short_is_written_down_as_unfinished() -> None:
    reached = asyncio.Event()

    class Stuck(ScriptedClient):
        async def infer(self, observation: Observation, *, ttl_ms: int) -> ActionChunk:
            reached.set()
            await asyncio.Event().wait()
            raise AssertionError

    arm = robot(CountingWorld(goal=4), Stuck(), ManualClock())
    work = asyncio.create_task(arm.work(lambda: True))
    await reached.wait()
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert [e.end for e in arm.logbook.episodes] == [EpisodeEnd.UNFINISHED]


async def test_no_episode_is_begun_once_the_time_is_over_or_the_number_reached() -> None:
    arm = robot(CountingWorld(goal=1), ScriptedClient(), ManualClock())
    await arm.work(lambda: True, episodes=3)
    assert [e.task for e in arm.logbook.episodes] == ["pick", "reach", "pick"]
    await arm.work(lambda: False)
    assert len(arm.logbook.episodes) == 3
    assert arm.status.succeeded == 3


async def test_a_robots_wrong_clock_is_what_it_sends() -> None:
    client = ScriptedClient()
    arm = robot(CountingWorld(goal=1), client, ManualClock())
    skewed = Robot(**{f: getattr(arm, f) for f in Robot.__dataclass_fields__} | {"clock_skew_ms": 3_600_000})
    await arm.episode("e-1", "pick")
    await skewed.episode("e-2", "pick")
    right, wrong = (o.captured_at_ms for o in client.observations)
    assert right is not None
    assert wrong is not None
    assert wrong - right >= 3_600_000
