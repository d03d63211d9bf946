"""The control loop of the examples' arm: look, ask for actions, execute the first few of the chunk, look again."""

from __future__ import annotations

import time
import uuid

from examples.tabletop.world import TabletopWorld
from robot_client import Late, Observation, Refused, RobotClient, Unreachable

#: Actions executed of each chunk before the robot looks again, at CONTROL_PERIOD_S seconds each.
EXECUTE = 4
CONTROL_PERIOD_S = 0.1
LONGEST_EPISODE_STEPS = 100


def play_episode(robot: RobotClient, *, seed: int, ttl_ms: int) -> bool:
    """Play one task in a world of its own and say what happens; whether the task is done."""
    world = TabletopWorld(seed=seed)
    instruction = world.reset()
    episode_id = str(uuid.uuid4())
    print(f"the task: {instruction}")
    step = 0
    while not world.success and not world.failed and step < LONGEST_EPISODE_STEPS:
        jpeg, state = world.observe()
        seen = Observation(
            images={"base": jpeg}, state=state, instruction=instruction, episode_id=episode_id, step=step
        )
        try:
            chunk = robot.infer(seen, ttl_ms=ttl_ms)
        except (Refused, Late, Unreachable) as error:
            # Nothing moves while nothing is commanded: this arm's actions are all deltas but the gripper's.
            print(f"step {step}: holding, {error}")
            step += 1
            time.sleep(CONTROL_PERIOD_S)
            continue
        print(f"step {step}: {chunk.round_trip_ms:.0f} ms, safety {chunk.safety.score:.2f}")
        for action in chunk.actions[:EXECUTE]:
            world.step(action)
            step += 1
            time.sleep(CONTROL_PERIOD_S)
    print("done" if world.success else "not done")
    return world.success
