"""One robot, one episode, over REST: `python examples/send_episode.py URL KEY` (both are in .vlastream/stack.json)."""

from __future__ import annotations

import sys

from examples.episode import play_episode
from robot_client import RestTransport, RobotClient


def main(url: str, api_key: str) -> int:
    with RobotClient(RestTransport(url, api_key), robot_id="arm-1", robot_type="tabletop_arm") as robot:
        return 0 if play_episode(robot, seed=3_000_000, ttl_ms=2000) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
