"""Load without coordinated omission: when a request is due is fixed before the run, and latency counts from then.

A closed loop (the next request when the last is answered) hides what a stall costs: while the service stands still,
nobody asks. It is used here only to find out how much a service can do.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

#: Code of a request that was answered with actions.
OK = "ok"


@dataclass(frozen=True, slots=True)
class Shot:
    """Request number `step` of a robot, due `due_s` seconds after the start."""

    due_s: float
    robot: int
    step: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: `code` is "ok" or why not. `timings_ms`: total and stages, as the service tells them."""

    request_id: str
    code: str
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One request with its times, Unix epoch in seconds."""

    due_s: float
    sent_s: float
    done_s: float
    robot: int
    answer: Answer

    @property
    def latency_ms(self) -> float:
        """From when it was due, whatever kept it from being sent."""
        return (self.done_s - self.due_s) * 1000

    @property
    def ok(self) -> bool:
        return self.answer.code == OK


#: Sends the observation `step` of a robot and waits for its answer. Failures are codes, not exceptions.
Send = Callable[[int, int], Awaitable[Answer]]
#: Told the seconds since the start and all samples so far.
Progress = Callable[[float, Sequence[Sample]], None]


def periodic(robots: int, hz: float, seconds: float, seed: int = 0) -> list[Shot]:
    """Robots that look at a fixed rate, each from a random phase; in the order in which requests are due."""
    rng = random.Random(seed)
    shots = []
    for robot in range(robots):
        phase_s = rng.random() / hz
        steps = max(int((seconds - phase_s) * hz) + 1, 0)
        shots += [Shot(phase_s + step / hz, robot, step) for step in range(steps) if phase_s + step / hz < seconds]
    return sorted(shots, key=lambda shot: shot.due_s)


async def open_loop(shots: Sequence[Shot], send: Send, progress: Progress, grace_s: float = 15.0) -> list[Sample]:
    """Send every shot when it is due, whatever became of those before. A request still open at the end is "lost"."""
    samples: list[Sample] = []
    began_mono_s, began_s = time.monotonic(), time.time()

    async def fire(shot: Shot) -> None:
        sent_s = _epoch(began_mono_s, began_s)
        answer = await _patient(send(shot.robot, shot.step), grace_s)
        samples.append(Sample(began_s + shot.due_s, sent_s, _epoch(began_mono_s, began_s), shot.robot, answer))

    async with asyncio.TaskGroup() as group:
        watch = asyncio.create_task(_watch(began_mono_s, samples, progress))
        for shot in shots:
            early_s = shot.due_s - (time.monotonic() - began_mono_s)
            if early_s > 0:
                await asyncio.sleep(early_s)
            group.create_task(fire(shot))
    watch.cancel()
    return sorted(samples, key=lambda sample: sample.due_s)


async def closed_loop(clients: int, seconds: float, send: Send, progress: Progress) -> list[Sample]:
    """So many clients, each with one request at a time, for so long."""
    samples: list[Sample] = []
    began_mono_s, began_s = time.monotonic(), time.time()

    async def client(robot: int) -> None:
        for step in count():
            sent_s = _epoch(began_mono_s, began_s)
            if sent_s - began_s >= seconds:
                return
            answer = await _patient(send(robot, step), 60.0)
            samples.append(Sample(sent_s, sent_s, _epoch(began_mono_s, began_s), robot, answer))
            if answer.code != OK:
                await asyncio.sleep(0.05)

    watch = asyncio.create_task(_watch(began_mono_s, samples, progress))
    await asyncio.gather(*(client(robot) for robot in range(clients)))
    watch.cancel()
    return samples


def steady_rate(samples: Sequence[Sample], until_s: float) -> float:
    """Answers a second: the slope of their number over time, up to `until_s` (epoch), when the load ended.

    A plain count over the window would be off by a whole batch at either end. 0 where too few came.
    """
    done_s = sorted(sample.done_s for sample in samples if sample.ok and sample.done_s <= until_s)
    if len(done_s) < 2 or done_s[-1] == done_s[0]:
        return 0.0
    slope, _ = np.polyfit(np.array(done_s) - done_s[0], np.arange(len(done_s)), 1)
    return float(slope)


async def _patient(answer: Awaitable[Answer], limit_s: float) -> Answer:
    try:
        return await asyncio.wait_for(answer, limit_s)
    except TimeoutError:
        return Answer("", "lost")


async def _watch(began_s: float, samples: Sequence[Sample], progress: Progress) -> None:
    while True:
        await asyncio.sleep(1.0)
        progress(time.monotonic() - began_s, samples)


def _epoch(began_mono_s: float, began_s: float) -> float:
    """Now as Unix epoch, by the monotonic clock since the start: a corrected wall clock moves no latency."""
    return began_s + time.monotonic() - began_mono_s
