"""A fleet's robot, straight over Kafka: `python -m examples.fleet_robot PROPERTIES FLEET ROBOT_ID [TTL_MS]`.

PROPERTIES holds librdkafka's own settings, one name=value a line: bootstrap.servers, and on a secure Kafka
security.protocol, sasl.mechanism, sasl.username, sasl.password and ssl.ca.location (`vlastream fleets add` gives the
user). The same program in C++ is examples/cpp/fleet_robot.cpp.
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path

from examples.tabletop.world import TabletopWorld
from robot_client import Late, Observation, Refused, RobotClient, Unreachable
from robot_client.kafka import KafkaTransport

#: Actions executed of each chunk before the robot looks again, at CONTROL_PERIOD_S seconds each.
EXECUTE = 4
CONTROL_PERIOD_S = 0.1
LONGEST_EPISODE_STEPS = 100


def read_properties(path: Path) -> dict[str, str]:
    """name=value lines; empty ones and those that begin with # are passed over."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, value in pairs}


def main(properties: str, fleet: str, robot_id: str, ttl_ms: str = "2000") -> int:
    connection = read_properties(Path(properties))
    transport = KafkaTransport(
        connection.pop("bootstrap.servers"),
        fleet=fleet,
        robot_id=robot_id,
        frame_lifetime_ms=int(ttl_ms),
        security=connection,
    )
    world = TabletopWorld(seed=3_000_001)
    instruction = world.reset()
    episode_id = str(uuid.uuid4())
    print(f"the task: {instruction}")
    with RobotClient(transport, robot_id=robot_id, robot_type="tabletop_arm") as robot:
        step = 0
        while not world.success and not world.failed and step < LONGEST_EPISODE_STEPS:
            jpeg, state = world.observe()
            seen = Observation(
                images={"base": jpeg}, state=state, instruction=instruction, episode_id=episode_id, step=step
            )
            try:
                chunk = robot.infer(seen, ttl_ms=int(ttl_ms))
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
    sys.exit(main(*sys.argv[1:5]))
