"""Robots of foreign protocols: what their process says becomes the demo's records, however it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.demo import visitor
from examples.demo.record import ACTIONS, EpisodeEnd, Logbook
from examples.demo.visitors import PROTOCOLS, Visitor
from examples.tabletop.expert import act
from examples.tabletop.world import TabletopWorld

VISIT = {
    "protocol": "openpi",
    "api": "http://127.0.0.1:1",
    "api_key": "k",
    "robot_id": "openpi-arm",
    "seed": 5,
    "seconds": 0.0,
    "episodes": None,
    "control_period_s": 0.0,
}


class Expert:
    """Does what the world's own expert would, and holds at every third step."""

    def __init__(self, world: TabletopWorld) -> None:
        self._world = world
        self._asked = 0
        self.told: list[Any] = []

    def begin(self, instruction: str) -> None:
        self.told.append(instruction)

    def act(self, pixels: NDArray[np.uint8], state: NDArray[np.floating], instruction: str) -> NDArray[np.floating]:
        assert pixels.shape == (224, 224, 3)
        assert state.shape == (8,)
        self._asked += 1
        if self._asked % 3 == 0:
            raise visitor.Holds
        return np.asarray(act(self._world.worlds)[0])

    def end(self, success: bool) -> None:
        self.told.append(success)


def test_every_protocol_of_the_demo_has_its_client() -> None:
    assert set(PROTOCOLS) == set(visitor.CLIENTS)


def test_what_an_episode_says_is_what_the_demo_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = TabletopWorld(5)
    client = Expert(world)
    ended = visitor.episode(client, world, "reach", 0.0)
    instruction, success = client.told
    assert success
    (begun,) = map(json.loads, capsys.readouterr().out.splitlines())
    logbook = Logbook()
    robot = Visitor(VISIT, logbook, tmp_path / "log")
    robot.take(begun)
    assert logbook.robots[0].instruction == instruction
    robot.take({"request": {"outcome": ACTIONS, "round_trip_ms": 12.0}})
    robot.take({"episode": ended})
    (episode,) = logbook.episodes
    assert (episode.task, episode.end, episode.transport) == ("reach", EpisodeEnd.SUCCESS, "openpi")
    assert episode.held_steps == (episode.control_steps - 1) // 2
    assert (logbook.requests[0].transport, logbook.robots[0].succeeded) == ("openpi", 1)


async def test_a_client_that_breaks_is_told_and_its_episode_is_unfinished(tmp_path: Path) -> None:
    logbook, log = Logbook(), tmp_path / "log"
    robot = Visitor({**VISIT, "protocol": "unknown", "seconds": 1.0}, logbook, log, Path(sys.executable))
    robot.take({"begin": {"task": "reach", "instruction": "reach the red block"}})
    await robot.work()
    assert [episode.end for episode in logbook.episodes] == [EpisodeEnd.UNFINISHED]
    assert "status 1" in logbook.events[0]
    assert "KeyError" in log.read_text()
