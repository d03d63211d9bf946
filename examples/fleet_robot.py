"""A fleet's robot, straight over Kafka: `python -m examples.fleet_robot PROPERTIES FLEET ROBOT_ID [TTL_MS]`.

PROPERTIES holds librdkafka's own settings, one name=value a line: bootstrap.servers, and on a secure Kafka
security.protocol, sasl.mechanism, sasl.username, sasl.password and ssl.ca.location (`vlastream fleets add` gives the
user). The same program in C++ is examples/cpp/fleet_robot.cpp.
"""

from __future__ import annotations

import sys
from pathlib import Path

from examples.episode import play_episode
from robot_client import RobotClient
from robot_client.kafka import KafkaTransport


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
    with RobotClient(transport, robot_id=robot_id, robot_type="tabletop_arm") as robot:
        return 0 if play_episode(robot, seed=3_000_001, ttl_ms=int(ttl_ms)) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:5]))
