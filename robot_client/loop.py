"""A control loop that no network delays: one action a tick, while the next chunk is on its way.

    with RobotClient(RestTransport(url, key), robot_id="arm-1", robot_type="tabletop_arm") as client:
        loop = ControlLoop(client, Axes.of(card), Pace(control_rate_hz=10))
        report = loop.run(arm, until=lambda: arm.done)

The thread that calls `run` takes observations and sends actions, paced by the monotonic clock. The client's own
thread encodes, sends and waits. What is executed when stands in robot_client/schedule.py.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_client.axes import Axes
from robot_client.chunk import ActionChunk
from robot_client.errors import Late, Refused, RobotClientError
from robot_client.latency import LatencyWindow
from robot_client.observation import Observation
from robot_client.schedule import Schedule, ScheduleRule, Source, Verdict

log = logging.getLogger(__name__)

#: Longest time after a refusal in which nothing is asked for, whatever its Retry-After, seconds.
LONGEST_PAUSE_S = 1.0
#: Latest latencies that a report holds.
REPORTED_LATENCIES = 4096
#: What a tick may begin late before it is counted, as a share of the period.
LATE_SHARE = 0.5


class Body(Protocol):
    """The robot, as the loop sees it. Neither call may wait for anything longer than a tick."""

    def observe(self) -> Observation:
        """What the robot sees and is told now. The loop fills in `step` and `executed`."""
        ...

    def act(self, action: NDArray[np.float32]) -> None:
        """Execute one action (action_dim,)."""
        ...


class Asks(Protocol):
    """The part of RobotClient that the loop needs."""

    def submit(self, observation: Observation, *, ttl_ms: int) -> Future[ActionChunk]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast the loop runs. Raises ValueError for rates that do not fit together.

    control_rate_hz: steps a second of the embodiment's card, for which its chunks are made.
    rate_hz: ticks a second, a whole multiple of it; None: the same.
    ttl_ms: how long an observation is worth acting on; no longer than its chunk is asked for, once one has come.
    percentile: of the latencies measured, what an answer is expected to take.
    """

    control_rate_hz: float
    rate_hz: float | None = None
    ttl_ms: int = 2000
    percentile: float = 95.0

    def __post_init__(self) -> None:
        if not self.control_rate_hz > 0:
            raise ValueError(f"control_rate_hz must be above 0, not {self.control_rate_hz}")
        ratio = (self.rate_hz or self.control_rate_hz) / self.control_rate_hz
        if round(ratio) < 1 or abs(ratio - round(ratio)) > 1e-6:
            raise ValueError(
                f"rate_hz {self.rate_hz} is no whole multiple of the embodiment's {self.control_rate_hz} steps a second"
            )

    @property
    def ticks_per_step(self) -> int:
        return round((self.rate_hz or self.control_rate_hz) / self.control_rate_hz)

    @property
    def period_s(self) -> float:
        return 1 / (self.control_rate_hz * self.ticks_per_step)


@dataclass(slots=True)
class LoopReport:
    """What a run came to.

    ticks: that were played, by `sources`; late_ticks: of these began late by more than half a period;
    missed_ticks: slots of time in which no tick began, because the one before took too long.
    answers: what became of the chunks that came; failures: by code of a refusal, "late" or "unreachable";
    latency: from an observation to its chunk, what never came left out.
    """

    ticks: int = 0
    late_ticks: int = 0
    missed_ticks: int = 0
    requests: int = 0
    sources: Counter[Source] = field(default_factory=Counter)
    answers: Counter[Verdict] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    latency: LatencyWindow = field(default_factory=lambda: LatencyWindow(REPORTED_LATENCIES))

    @property
    def held_ticks(self) -> int:
        return self.ticks - self.sources[Source.CHUNK]

    @property
    def stale_ticks(self) -> int:
        """Held because the last chunk's steps were over and no other had come."""
        return self.sources[Source.STALE]


class _Asked:
    """A request on its way. The time that its answer took ends when it came, not at the tick that looks at it."""

    def __init__(self, tick: int, answer: Future[ActionChunk], clock: Callable[[], float]) -> None:
        self.tick = tick
        self.answer = answer
        self._clock = clock
        self._at_s = clock()
        self._came_s: float | None = None
        answer.add_done_callback(self._note)

    @property
    def took_s(self) -> float:
        return (self._came_s if self._came_s is not None else self._clock()) - self._at_s

    def _note(self, _answer: Future[ActionChunk]) -> None:
        self._came_s = self._clock()


class ControlLoop:
    """Runs one robot, one episode a call of `run`; what was measured of latency stays from one to the next.

    clock: monotonic seconds. sleep: waits for some seconds in the calling thread.
    """

    def __init__(
        self,
        client: Asks,
        axes: Axes,
        pace: Pace,
        rule: ScheduleRule | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._axes = axes
        self._pace = pace
        self._rule = rule or ScheduleRule()
        self._clock = clock
        self._sleep = sleep
        self._latency = LatencyWindow()
        self._ttl_ms = pace.ttl_ms

    def run(self, body: Body, until: Callable[[], bool]) -> LoopReport:
        """Tick after tick until `until` says so, which is asked before each.

        Raises what `body` raises and ValueError for an observation that cannot be encoded, after the robot was told
        to hold; whatever the service does is no exception here, but a held tick.
        """
        run = _Run(self._axes, self._rule, self._pace)
        began_s = self._clock()
        tick = 0
        try:
            while not until():
                self._play(run, body, tick)
                tick = self._next(run.report, began_s, tick)
        except BaseException:
            held = run.schedule.held()
            if held is not None:
                # The first error is the one to tell.
                with contextlib.suppress(Exception):
                    body.act(held)
            raise
        finally:
            if run.asked is not None:
                run.asked.answer.cancel()
        return run.report

    def _play(self, run: _Run, body: Body, tick: int) -> None:
        self._settle(run, tick)
        if run.schedule.due(tick, self._latency_ticks()):
            seen = body.observe()
            executed = run.schedule.asked(tick)
            observation = replace(seen, step=run.schedule.step_of(tick), executed=executed)
            run.asked = _Asked(tick, self._client.submit(observation, ttl_ms=self._ttl_ms), self._clock)
            run.report.requests += 1
        command = run.schedule.command(tick)
        run.report.ticks += 1
        run.report.sources[command.source] += 1
        if command.action is not None:
            body.act(command.action)

    def _settle(self, run: _Run, tick: int) -> None:
        """Take the answer, if it has come. Never waits."""
        asked = run.asked
        if asked is None or not asked.answer.done():
            return
        run.asked = None
        took_s = asked.took_s
        try:
            chunk = asked.answer.result()
        except RobotClientError as error:
            if isinstance(error, Late):
                self._latency.add(took_s)
            run.report.failures[_name_of(error)] += 1
            run.schedule.failed(asked.tick, tick, error, pause_ticks=self._pause_ticks(error))
            log.debug("no actions for the observation of tick %d: %s", asked.tick, error)
        else:
            self._latency.add(took_s)
            run.report.latency.add(took_s)
            run.report.answers[run.schedule.answered(asked.tick, tick, chunk)] += 1
            # An answer that comes after its last step is of no use to anyone.
            lasts_ms = math.ceil(len(chunk.actions) / self._pace.control_rate_hz * 1000)
            self._ttl_ms = min(self._pace.ttl_ms, lasts_ms)

    def _next(self, report: LoopReport, began_s: float, tick: int) -> int:
        """Waits for the next tick that has not begun yet, and returns its number."""
        period_s = self._pace.period_s
        elapsed_s = self._clock() - began_s
        following = max(tick + 1, math.floor(elapsed_s / period_s))
        report.missed_ticks += following - tick - 1
        while (left_s := following * period_s - (self._clock() - began_s)) > 0:
            self._sleep(left_s)
        if -left_s > LATE_SHARE * period_s:
            report.late_ticks += 1
        return following

    def _latency_ticks(self) -> int | None:
        latency_s = self._latency.percentile_s(self._pace.percentile)
        return math.ceil(latency_s / self._pace.period_s) if latency_s is not None else None

    def _pause_ticks(self, error: RobotClientError) -> int:
        pause_s = min(error.retry_after_s, LONGEST_PAUSE_S) if isinstance(error, Refused) else 0.0
        return math.ceil(pause_s / self._pace.period_s)


class _Run:
    """One episode."""

    def __init__(self, axes: Axes, rule: ScheduleRule, pace: Pace) -> None:
        self.schedule = Schedule(axes, rule, control_rate_hz=pace.control_rate_hz, ticks_per_step=pace.ticks_per_step)
        self.asked: _Asked | None = None
        self.report = LoopReport()


def _name_of(error: RobotClientError) -> str:
    return error.code if isinstance(error, Refused) else type(error).__name__.lower()
