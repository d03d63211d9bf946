"""A new revision beside the old one, under load: robots move to it by weights and back; a model and a fleet join in.

For the revision nothing is restarted; for the fleet every gate and sink is, one after another. That nothing is lost
and the books balance is what every fault is held to.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping

from robot_client import KafkaTransport, Observation, RobotClient
from stream_agents.request_rules import route
from tests import pictures
from tests.faults import log
from tests.faults.scene import CARD, CARDS, NEXT, OTHER, Scene

#: Weights of the old and the new revision, one after the other.
STEPS = ((50, 50), (0, 100), (50, 50), (100, 0))
#: Added while robots are on both revisions.
FLEET = "newcomers"


def roll_a_revision(scene: Scene) -> None:
    """100/0 to 50/50 to 0/100 and back, while every robot stays where it is as long as the weights do.

    At the first 50/50 a fleet is added, served, and taken out again.
    """
    expected = {robot: [CARD.deployment] for robot in set(scene.load.scheduled_robots.values())}
    too_early = scene.command("models", "traffic", CARD.model, f"{NEXT.deployment}=1", "--reason", "x", status=1)
    assert f"no live worker: {NEXT.deployment}" in too_early
    with scene.more_gpu_workers(1, NEXT.deployment), scene.more_gpu_workers(1, OTHER.deployment):
        for number, (old, new) in enumerate(STEPS):
            others = [scene.load.ask(model=OTHER.model, instruction=f"lift block {number} {i}") for i in range(4)]
            said = scene.command(
                "models", "traffic", CARD.model, f"{CARD.deployment}={old}", f"{NEXT.deployment}={new}",
                "--reason", f"step {number}", "--by", "the test",
            )  # fmt: skip
            for share, deployment in ((old, CARD.deployment), (new, NEXT.deployment)):
                assert f"{deployment} {share} %" in said
                assert (f"{deployment} has drained" in said) == (share == 0)
            weights = {CARD.deployment: float(old), NEXT.deployment: float(new)}
            for robot, deployments in expected.items():
                deployments.append(_place(robot, weights))
            _wait_until_moved(scene, {robot: deployments[-1] for robot, deployments in expected.items()})
            for answered in others:
                answered.result(timeout=100)
            if number == 0:
                _fleet_comes_and_goes(scene)
    seen = _deployments(scene)
    for robot, deployments in expected.items():
        assert seen[robot] == [name for name, _ in itertools.groupby(deployments)], f"{robot} was moved needlessly"
    history = scene.command("models", "traffic", CARD.model, "--history").splitlines()
    assert [line.rpartition(": ")[2] for line in history[-len(STEPS) :]] == [f"step {i}" for i in range(len(STEPS))]
    assert all("by the test" in line for line in history[-len(STEPS) :])


def _fleet_comes_and_goes(scene: Scene) -> None:
    gates = scene.stack.pids("gate")
    scene.command("fleets", "add", FLEET, "--by", "the test")
    assert not set(gates) & set(scene.stack.pids("gate")), "every gate was restarted"
    robot_id, bootstrap = f"{FLEET}-1", scene.settings.kafka_bootstrap_servers
    transport = KafkaTransport(bootstrap, fleet=FLEET, robot_id=robot_id, frame_lifetime_ms=20_000)
    seen = Observation(
        images={"base": pictures.jpeg()}, state=[0.0] * CARD.state_dim, instruction="lift the blue block"
    )
    with RobotClient(transport, robot_id=robot_id, robot_type=CARD.embodiments[0]) as robot:
        assert len(robot.infer(seen, ttl_ms=20_000).actions) == CARD.horizon
    scene.command("fleets", "remove", FLEET)
    assert scene.stack.file["fleets"] == "demo"


def _place(robot_id: str, weights: Mapping[str, float]) -> str:
    robot = CARDS.embodiment(CARD.embodiments[0])
    assert robot is not None
    card = route(CARD.model, robot_id, robot, CARDS, weights)
    assert card is not None
    return card.deployment


def _wait_until_moved(scene: Scene, places: Mapping[str, str], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while True:
        seen = _deployments(scene)
        away = [robot for robot, place in places.items() if seen.get(robot, [""])[-1] != place]
        if not away:
            return
        assert time.monotonic() < end, f"still not where the weights put them: {away}"
        time.sleep(0.3)


def _deployments(scene: Scene) -> dict[str, list[str]]:
    """Robot -> deployments that its actions came from, in the order of its requests, without repeats in a row."""
    robots = set(scene.load.scheduled_robots.values())
    served: dict[str, list[tuple[int, str]]] = {robot: [] for robot in robots}
    for robot, offset, deployment in _served(scene):
        if robot in robots:
            served[robot].append((offset, deployment))
    return {
        robot: [name for name, _ in itertools.groupby(deployment for _, deployment in sorted(found))]
        for robot, found in served.items()
    }


def _served(scene: Scene) -> Iterator[tuple[str, int, str]]:
    for outcome, _ in log.outcomes(scene.settings):
        if outcome.HasField("chunk"):
            yield outcome.request.robot_id, outcome.request.source.offset, outcome.chunk.result.deployment
