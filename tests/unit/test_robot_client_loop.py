"""ControlLoop on a virtual clock: paced, never delayed by the service, and what it says of a run."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_client import (
    ActionChunk,
    Axes,
    ControlLoop,
    Late,
    Observation,
    Pace,
    Refused,
    RestTransport,
    RobotClient,
    ScheduleRule,
    Unreachable,
)
from robot_client.latency import LatencyWindow
from robot_client.schedule import Source, Verdict
from tests.unit.robot_client_case import chunk, observation, reply_json

AXES = Axes(moves=(True,) * 6 + (False,), switches=(False,) * 6 + (True,))
#: What a scripted service does with a request: after how many seconds, and the chunk or the error.
Answer = tuple[float, ActionChunk | Exception]


@dataclass
class VirtualTime:
    """Seconds that pass only in `sleep` and `pass_`; what is due meanwhile happens at its time."""

    now_s: float = 1000.0
    due: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        # As a real clock, it moves on even for what is less than its resolution.
        end = self.now_s + max(seconds, 1e-9)
        for at_s, happen in sorted(self.due, key=lambda item: item[0]):
            if at_s <= end:
                self.now_s = max(self.now_s, at_s)
                self.due = [item for item in self.due if item[1] is not happen]
                happen()
        self.now_s = end


class Service:
    """Answers each submitted observation as scripted, by default with a chunk after 0.03 s."""

    def __init__(self, time: VirtualTime, answer: Callable[[int], Answer | None] = lambda _n: (0.03, chunk())) -> None:
        self._time = time
        self._answer = answer
        self.observations: list[Observation] = []
        self.ttls_ms: list[int] = []
        self.futures: list[Future[ActionChunk]] = []

    def submit(self, observation: Observation, *, ttl_ms: int) -> Future[ActionChunk]:
        answer = self._answer(len(self.observations))
        self.observations.append(observation)
        self.ttls_ms.append(ttl_ms)
        future: Future[ActionChunk] = Future()
        self.futures.append(future)
        if answer is not None:
            after_s, content = answer
            self._time.due.append((self._time.now_s + after_s, lambda: settle(future, content)))
        return future


def settle(future: Future[ActionChunk], content: ActionChunk | Exception) -> None:
    if isinstance(content, Exception):
        future.set_exception(content)
    else:
        future.set_result(content)


class Arm:
    """Keeps each action with its time; `takes_s` is what the n-th action takes."""

    def __init__(self, time: VirtualTime, takes_s: Callable[[int], float] = lambda _n: 0.0) -> None:
        self._time = time
        self._takes_s = takes_s
        self.actions: list[NDArray[np.float32]] = []
        self.at_s: list[float] = []
        self.looks = 0

    def observe(self) -> Observation:
        self.looks += 1
        return observation(step=0)

    def act(self, action: NDArray[np.float32]) -> None:
        self.at_s.append(self._time.now_s)
        self.actions.append(action)
        self._time.now_s += self._takes_s(len(self.actions) - 1)


def loop(service: Service, time: VirtualTime, rule: ScheduleRule | None = None, **pace: float) -> ControlLoop:
    return ControlLoop(
        service,
        AXES,
        Pace(**{"control_rate_hz": 10.0, **pace}),  # type: ignore[arg-type] # ttl_ms among them
        rule,
        clock=time,
        sleep=time.sleep,
    )


def after(ticks: int) -> Callable[[], bool]:
    """True once it was asked so many times."""
    left = iter(range(ticks))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("rate_hz", [10.0, 20.0, 50.0])
def test_actions_go_out_at_the_rate_whatever_the_service_does(rate_hz: float) -> None:
    time = VirtualTime()
    arm, service = Arm(time), Service(time, lambda n: None if n == 3 else (0.25, chunk()))
    report = loop(service, time, rate_hz=rate_hz).run(arm, after(200))
    assert report.ticks == 200
    assert (report.late_ticks, report.missed_ticks) == (0, 0)
    assert {round((b - a) * rate_hz, 6) for a, b in pairwise(arm.at_s)} == {1.0}


def test_a_service_that_never_answers_leaves_the_robot_holding() -> None:
    time = VirtualTime()
    arm, service = Arm(time), Service(time, lambda _n: None)
    axes = Axes(moves=(True,) * 7, switches=(False,) * 7)
    report = ControlLoop(service, axes, Pace(control_rate_hz=10.0), clock=time, sleep=time.sleep).run(arm, after(50))
    assert report.requests == 1
    assert report.sources == {Source.START: 50}
    assert not np.array(arm.actions).any()
    assert service.futures[0].cancelled(), "nobody waits for it when the run is over"


def test_observations_carry_step_and_what_was_executed_since_the_last() -> None:
    time = VirtualTime()
    arm, service = Arm(time), Service(time)
    loop(service, time, ScheduleRule(look_again_steps=4)).run(arm, after(40))
    steps = [seen.step for seen in service.observations]
    assert steps == sorted(set(steps))
    assert len(steps) > 5
    told = [row for seen in service.observations if seen.executed is not None for row in seen.executed]
    np.testing.assert_array_equal(told, arm.actions[: len(told)])
    assert len(told) == steps[-1] - 1, "the first step held without a command: there was nothing to repeat"


def test_a_robot_that_is_slow_misses_ticks_and_does_not_make_up_for_them() -> None:
    time = VirtualTime()
    # The fifth action, at tick 5, takes 3.7 periods: tick 8 begins late, 6 and 7 never do.
    arm = Arm(time, lambda n: 0.37 if n == 4 else 0.0)
    report = loop(Service(time), time, ScheduleRule(look_again_steps=2)).run(arm, after(8))
    assert report.missed_ticks == 2
    assert report.late_ticks == 1
    # The newest chunk is of tick 4: at tick 5 its second row was executed, at tick 8 its fifth is.
    np.testing.assert_array_equal(arm.actions[4:6], chunk().actions[[1, 4]])


#: Of no action, and never a whole number of periods: at the very border of a slot both slots are right.
DELAYS_S = st.just(0.0) | st.integers(0, 45).map(lambda n: (10 * n + 5.0123) / 1000)


@given(st.lists(DELAYS_S, min_size=1, max_size=20), st.sampled_from([10.0, 30.0, 50.0]))
def test_no_tick_begins_before_its_time_and_ticks_and_misses_add_up(delays_s: list[float], rate_hz: float) -> None:
    time = VirtualTime()
    began_s = time.now_s
    axes = Axes(moves=(True,) * 7, switches=(False,) * 7)
    arm = Arm(time, lambda n: delays_s[n % len(delays_s)])
    pace = Pace(control_rate_hz=10.0, rate_hz=rate_hz)
    report = ControlLoop(Service(time, lambda _n: None), axes, pace, clock=time, sleep=time.sleep).run(arm, after(40))
    slots = [int((at_s - began_s) * rate_hz + 1e-6) for at_s in arm.at_s]
    assert slots == sorted(set(slots)), "at most one action in a slot of time"
    following = max(slots[-1] + 1, int((time.now_s - began_s) * rate_hz + 1e-6))
    assert report.ticks + report.missed_ticks == following


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Refused("no", code="stopped", status=423, request_id="r"), "stopped"),
        (Late("late", request_id="r"), "late"),
        (Unreachable("away", request_id="r"), "unreachable"),
    ],
)
def test_what_the_service_does_wrong_is_held_counted_and_asked_anew(error: Exception, name: str) -> None:
    time = VirtualTime()
    arm = Arm(time)
    service = Service(time, lambda n: (0.03, error) if n == 0 else (0.03, chunk()))
    report = loop(service, time).run(arm, after(20))
    assert report.failures == {name: 1}
    assert report.requests == len(service.observations) > 1
    assert report.sources[Source.CHUNK] > 10
    assert report.answers[Verdict.TAKEN] >= 2


def test_a_retry_after_is_given_up_to_a_second() -> None:
    time = VirtualTime()
    error = Refused("no", code="overloaded", status=503, request_id="r", retry_after_s=30.0)
    service = Service(time, lambda _n: (0.01, error))
    loop(service, time).run(Arm(time), after(35))
    assert [seen.step for seen in service.observations] == [0, 11, 22, 33]


def test_an_answer_is_asked_for_no_longer_than_its_chunk_lasts() -> None:
    time = VirtualTime()
    service = Service(time)
    loop(service, time, ttl_ms=2000).run(Arm(time), after(30))
    assert service.ttls_ms[0] == 2000
    assert set(service.ttls_ms[1:]) == {800}


def test_latency_is_measured_to_the_answers_own_time_and_decides_when_to_ask() -> None:
    time = VirtualTime()
    service = Service(time, lambda _n: (0.23, chunk()))
    report = loop(service, time).run(Arm(time), after(60))
    assert report.latency.percentile_s(95) == pytest.approx(0.23)
    # 8 steps: three for the answer, one to spare, and the step at which it is asked.
    steps = [seen.step for seen in service.observations]
    assert {b - a for a, b in pairwise(steps)} == {4}
    assert report.stale_ticks == 0


def test_an_error_in_the_robot_ends_the_loop_after_a_hold() -> None:
    time = VirtualTime()

    class Broken(Arm):
        def observe(self) -> Observation:
            if self.looks == 1:
                raise OSError("the camera is gone")
            return super().observe()

    arm = Broken(time)
    with pytest.raises(OSError, match="camera"):
        loop(Service(time), time).run(arm, after(100))
    held = arm.actions[-1]
    assert not held[:6].any()
    assert held[6] == arm.actions[-2][6]


def test_an_observation_that_cannot_be_encoded_is_an_error_of_the_robot_not_a_held_tick() -> None:
    time = VirtualTime()
    service = Service(time, lambda _n: (0.01, ValueError("state must have shape (state_dim,)")))
    with pytest.raises(ValueError, match="state_dim"):
        loop(service, time).run(Arm(time), after(10))


@pytest.mark.parametrize("pace", [{"rate_hz": 25.0}, {"rate_hz": 5.0}, {"control_rate_hz": 0.0}])
def test_a_rate_that_does_not_fit_the_embodiment_is_refused_at_once(pace: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rate_hz"):
        Pace(**{"control_rate_hz": 10.0, **pace})


@given(st.lists(st.floats(0, 10), min_size=1, max_size=200), st.floats(1, 100))
def test_a_percentile_is_one_of_the_latest_latencies_and_bounds_its_share(taken_s: list[float], percent: float) -> None:
    window = LatencyWindow(64)
    for seconds in taken_s:
        window.add(seconds)
    latest = taken_s[-64:]
    found = window.percentile_s(percent)
    assert found in latest
    assert sum(seconds <= found for seconds in latest) >= len(latest) * percent / 100 - 1e-9


def test_the_client_submits_without_waiting() -> None:
    def api(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=reply_json())

    transport = RestTransport("http://api", "k", transport=httpx.MockTransport(api))
    with RobotClient(transport, robot_id="arm-1", robot_type="tabletop_arm") as client:
        future = client.submit(observation(), ttl_ms=5000)
        assert future.result(timeout=30).actions.shape == (8, 7)
