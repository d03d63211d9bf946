"""A robot that never waits: 10-50 actions a second, whatever its connection does.

    python examples/control_loop.py URL KEY --transport websocket --rate 20
    python examples/control_loop.py URL KEY --transport kafka --bootstrap HOST:PORT --fleet demo

URL, KEY and the bootstrap address stand in .vlastream/stack.json. What is executed when: docs/client.md.
"""

from __future__ import annotations

import argparse
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from examples.fleet_robot import read_properties
from examples.tabletop.world import TASKS, TabletopWorld
from robot_client import (
    Axes,
    ControlLoop,
    KafkaTransport,
    LoopReport,
    Observation,
    Pace,
    RestTransport,
    RobotClient,
    ScheduleRule,
    Transport,
    WebSocketTransport,
)
from robot_client.blend import Blend, CrossFade, Newest, Weighted
from schemas.card_files import load_cards

CARDS = Path(__file__).resolve().parents[1] / "deploy" / "cards"
ROBOT_TYPE = "tabletop_arm"
TTL_MS = 2000
#: Ticks after which an episode is given up, as a multiple of the world's own limit of steps: held ticks count too.
PATIENCE = 4
BLENDS: dict[str, Blend] = {"newest": Newest(), "fade": CrossFade(3), "lerobot": Weighted(0.7)}


class TabletopArm:
    """The tabletop world as a robot. It moves in control steps; what is commanded within one adds up."""

    def __init__(self, seed: int, ticks_per_step: int) -> None:
        self._world = TabletopWorld(seed)
        self._ticks_per_step = ticks_per_step
        self._episode_id = ""
        self._instruction = ""
        self._commanded: list[NDArray[np.float32]] = []

    def begin(self, task: str) -> str:
        self._instruction = self._world.reset(task)
        self._episode_id = str(uuid.uuid4())
        self._commanded.clear()
        return self._instruction

    @property
    def succeeded(self) -> bool:
        return self._world.success

    @property
    def over(self) -> bool:
        return self._world.success or self._world.failed

    def observe(self) -> Observation:
        self._move()
        jpeg, state = self._world.observe()
        return Observation(
            images={"base": jpeg}, state=state, instruction=self._instruction, episode_id=self._episode_id
        )

    def act(self, action: NDArray[np.float32]) -> None:
        # Nothing moves while the arm is told to hold; a table that went on would count standing still as reaching.
        if not action[:6].any():
            return
        self._commanded.append(action)
        if len(self._commanded) == self._ticks_per_step:
            self._move()

    def _move(self) -> None:
        if self._commanded:
            whole = np.sum(self._commanded, axis=0)
            whole[6] = self._commanded[-1][6]
            self._world.step(whole)
            self._commanded.clear()


@dataclass(frozen=True, slots=True)
class Episode:
    instruction: str
    succeeded: bool
    report: LoopReport


def play(transport: Transport, options: argparse.Namespace) -> list[Episode]:
    """One robot, some episodes, one after the other."""
    card = load_cards(CARDS).embodiment(ROBOT_TYPE)
    assert card is not None
    assert card.control_rate_hz is not None
    pace = Pace(control_rate_hz=card.control_rate_hz, rate_hz=options.rate, ttl_ms=TTL_MS)
    rule = ScheduleRule(look_again_steps=options.look_again, blend=BLENDS[options.blend])
    arm = TabletopArm(options.seed, pace.ticks_per_step)
    episodes = []
    with RobotClient(transport, robot_id=options.robot_id, robot_type=ROBOT_TYPE) as client:
        loop = ControlLoop(client, Axes.of(card), pace, rule)
        for number in range(options.episodes):
            instruction = arm.begin(TASKS[number % len(TASKS)])
            report = loop.run(arm, until=_over(arm, PATIENCE * 80 * pace.ticks_per_step))
            episodes.append(Episode(instruction, arm.succeeded, report))
            print(f"{'done' if arm.succeeded else 'not done'}: {instruction}, {report.ticks} ticks", flush=True)
    return episodes


def _over(arm: TabletopArm, ticks: int) -> Callable[[], bool]:
    left = iter(range(ticks))
    return lambda: arm.over or next(left, None) is None


def summary(episodes: Sequence[Episode], transport: str) -> str:
    reports = [episode.report for episode in episodes]

    def total(figure: Callable[[LoopReport], int]) -> int:
        return sum(map(figure, reports))

    failures: dict[str, int] = {}
    for report in reports:
        for name, count in report.failures.items():
            failures[name] = failures.get(name, 0) + count
    latencies = [f"{percent}: {_latest_ms(reports, percent):.0f}" for percent in (50, 95)]
    return "\n".join(
        (
            f"success over {transport}: {sum(episode.succeeded for episode in episodes)} of {len(episodes)} episodes",
            f"ticks: {total(lambda r: r.ticks)}; held: {total(lambda r: r.held_ticks)}, of these stale: "
            f"{total(lambda r: r.stale_ticks)}; late: {total(lambda r: r.late_ticks)}; "
            f"missed: {total(lambda r: r.missed_ticks)}",
            f"requests: {total(lambda r: r.requests)}; without actions: {failures or 'none'}",
            f"latency from observation to chunk, ms: {', '.join(latencies)}",
        )
    )


def _latest_ms(reports: Sequence[LoopReport], percent: float) -> float:
    found = [s for report in reports if (s := report.latency.percentile_s(percent)) is not None]
    return float(np.median(found)) * 1000 if found else float("nan")


def connect(options: argparse.Namespace) -> Transport:
    if options.transport == "rest":
        return RestTransport(options.url, options.key)
    if options.transport == "websocket":
        return WebSocketTransport(options.url, options.key)
    return KafkaTransport(
        options.bootstrap,
        fleet=options.fleet,
        robot_id=options.robot_id,
        frame_lifetime_ms=TTL_MS,
        security=read_properties(options.kafka_properties) if options.kafka_properties else {},
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 if at least half of the episodes succeeded."""
    options = _parser().parse_args(arguments)
    if options.transport == "kafka" and not options.bootstrap:
        _parser().error("--transport kafka needs --bootstrap HOST:PORT")
    episodes = play(connect(options), options)
    print(summary(episodes, options.transport))
    return 0 if 2 * sum(episode.succeeded for episode in episodes) >= len(episodes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add: Callable[..., Any] = parser.add_argument
    add("url", help="address of the API")
    add("key", help="API key; not looked at over Kafka")
    add("--transport", choices=("rest", "websocket", "kafka"), default="websocket")
    add("--bootstrap", help="address of Kafka")
    add("--kafka-properties", type=Path, help="file of librdkafka's security settings, one name=value a line")
    add("--fleet", default="demo", help="fleet whose topics the robot uses over Kafka (%(default)s)")
    add("--rate", type=float, default=10.0, help="ticks a second, a multiple of the arm's own 10 (%(default)s)")
    add("--episodes", type=int, default=4, help="one task after the other (%(default)s)")
    add("--look-again", type=int, default=4, help="steps of a chunk after which to look again (%(default)s)")
    add("--blend", choices=tuple(BLENDS), default="newest", help="how overlapping chunks are joined (%(default)s)")
    add("--robot-id", default="loop-arm")
    add("--seed", type=int, default=4_000_000)
    return parser


if __name__ == "__main__":
    sys.exit(main())
