"""One robot, one episode, over REST: `python examples/send_episode.py URL KEY` (both stand in .vlastream/stack.json).

The control loop that every robot has: look, ask for actions, execute the first few of the chunk, look again; hold
where there are none.
"""

from __future__ import annotations

import sys
import time
import uuid

from examples.tabletop.world import TabletopWorld
from robot_client import Late, Observation, Refused, RestTransport, RobotClient, Unreachable

#: Actions executed of each chunk before the robot looks again, at CONTROL_PERIOD_S seconds each.
EXECUTE = 4
CONTROL_PERIOD_S = 0.1
LONGEST_EPISODE_STEPS = 100


def main(url: str, api_key: str) -> int:
    world = TabletopWorld(seed=3_000_000)
    instruction = world.reset()
    episode_id = str(uuid.uuid4())
    print(f"the task: {instruction}")
    with RobotClient(RestTransport(url, api_key), robot_id="arm-1", robot_type="tabletop_arm") as robot:
        step = 0
        while not world.success and not world.failed and step < LONGEST_EPISODE_STEPS:
            jpeg, state = world.observe()
            seen = Observation(
                images={"base": jpeg}, state=state, instruction=instruction, episode_id=episode_id, step=step
            )
            try:
                chunk = robot.infer(seen, ttl_ms=2000)
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
    return 0 if world.success else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
