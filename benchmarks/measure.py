"""One scenario on a running stack: load it, then gather latency, layers, batches and memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import psutil
import uvloop

from benchmarks import frames, layers
from benchmarks.direct import DirectClients
from benchmarks.layers import Quantiles
from benchmarks.load import OK, Progress, Sample, closed_loop, open_loop, periodic, steady_rate
from benchmarks.outcome_log import OutcomeLog
from benchmarks.own_stack import Deployment, Target
from benchmarks.rest import RestClients
from benchmarks.scenarios import Scenario, Transport
from runtime.errors import Unavailable
from schemas.messages import StageTimes

DEADLINE_MS = 300.0
#: Of every run the first requests are not counted: connections open, caches fill, the cost model learns.
WARM_UP_SHARE = 0.2
_VIEWS = 8
_WARM_UP_ROBOTS = 8


@dataclass(frozen=True, slots=True)
class Frame:
    """One camera's picture."""

    bytes: int = 50_000
    width_px: int = 640
    height_px: int = 480


@dataclass(frozen=True, slots=True)
class Measured:
    """What one scenario gave. Milliseconds; rates a second."""

    scenario: Scenario
    requests: int
    answered: int
    codes: Mapping[str, int]
    rate: float
    #: None where nothing was answered.
    latency: Quantiles | None
    late_send: Quantiles | None
    within_deadline: float
    stages: Mapping[str, Quantiles]
    layers: Mapping[str, Quantiles]
    cumulative: Mapping[str, Quantiles]
    besides_model: Quantiles | None
    #: Batch size -> batches of it.
    batches: Mapping[int, int]
    #: Role -> the largest resident set of its processes after the run, MB.
    rss_mb: Mapping[str, float]
    #: Role -> CPU time of all its processes for each request, ms; "load generator" is this program.
    cpu_ms: Mapping[str, float]
    #: Latency of every answered request, for the plots.
    latencies_ms: Sequence[float]


def measure(scenario: Scenario, target: Target, frame: Frame, say: Callable[[str], None]) -> Measured:
    pictures = frames.views(_VIEWS, scenario.deployment.cameras, frame.bytes, frame.width_px, frame.height_px)
    log = OutcomeLog(target.settings)
    say(f"{scenario.name}: {scenario.offered}, {scenario.transport}, {scenario.seconds:g} s")
    began_s = time.time()
    spent_s = cpu_s(target)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        samples = runner.run(_load(scenario, target, pictures, progress_line(say)))
    each = {role: round((now - spent_s[role]) * 1000 / len(samples), 2) for role, now in cpu_s(target).items()}
    counted = [s for s in samples if s.due_s - began_s >= WARM_UP_SHARE * scenario.seconds]
    times = log.read([sample.answer.request_id for sample in counted if sample.ok])
    return _summary(scenario, counted, times, memory_mb(target), each)


def warm_up(deployment: Deployment, target: Target, frame: Frame, seconds: float, say: Callable[[str], None]) -> None:
    """Load a fresh stack without counting: a broker's JVM compiles its hot paths only after thousands of records."""
    if seconds <= 0:
        return
    say(f"warming up for {seconds:g} s")
    pictures = frames.views(_VIEWS, deployment.cameras, frame.bytes, frame.width_px, frame.height_px)
    transports: tuple[Transport, ...] = ("rest", "direct")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for transport in transports:
            load = Scenario(
                name="warm-up",
                deployment=deployment,
                robots=_WARM_UP_ROBOTS,
                hz=None,
                seconds=seconds / len(transports),
                transport=transport,
            )
            runner.run(_load(load, target, pictures, progress_line(say)))


async def _load(
    scenario: Scenario, target: Target, pictures: Sequence[frames.View], progress: Progress
) -> list[Sample]:
    model, ttl_ms = scenario.deployment.model, scenario.ttl_ms
    clients: RestClients | DirectClients
    if scenario.transport == "rest":
        clients = RestClients(target.api, target.api_key, model=model, views=pictures, ttl_ms=ttl_ms)
    else:
        bootstrap = target.settings.kafka_bootstrap_servers
        clients = DirectClients(bootstrap, fleet=target.fleet, model=model, views=pictures, ttl_ms=ttl_ms)
    async with clients:
        await _first_answer(clients)
        if scenario.hz is None:
            return await closed_loop(scenario.robots, scenario.seconds, clients.send, progress)
        shots = periodic(scenario.robots, scenario.hz, scenario.seconds)
        return await open_loop(shots, clients.send, progress)


async def _first_answer(clients: RestClients | DirectClients) -> None:
    """Until the path is warm: gates that have just joined, a producer without its id yet. Not measured."""
    for step in range(50):
        answer = await asyncio.wait_for(clients.send(100_000, step), 30.0)
        if answer.code == OK and step >= 5:
            return
        await asyncio.sleep(0.1)
    raise Unavailable(f"no request was answered; the last one ended as {answer.code}")


def _summary(
    scenario: Scenario,
    samples: Sequence[Sample],
    times: Mapping[str, StageTimes],
    rss_mb: Mapping[str, float],
    cpu_ms: Mapping[str, float],
) -> Measured:
    answered = [sample for sample in samples if sample.ok]
    stages = [layers.stages_ms(s, times[s.answer.request_id]) for s in answered if s.answer.request_id in times]
    split = [layers.layers_ms(row) for row in stages]
    latencies_ms = [sample.latency_ms for sample in answered]
    until_s = max((sample.due_s for sample in samples), default=0.0)
    sizes = Counter(sample.answer.batch_size for sample in answered)
    return Measured(
        scenario=scenario,
        requests=len(samples),
        answered=len(answered),
        codes=dict(Counter(sample.answer.code for sample in samples)),
        rate=steady_rate(samples, until_s),
        latency=Quantiles.of(latencies_ms) if answered else None,
        late_send=Quantiles.of([(s.sent_s - s.due_s) * 1000 for s in samples]) if samples else None,
        within_deadline=layers.share_within(samples, DEADLINE_MS),
        stages=layers.summarise(stages),
        layers=layers.summarise(split),
        cumulative=layers.cumulative(split),
        besides_model=Quantiles.of([layers.besides_model_ms(row) for row in split]) if split else None,
        batches={size: round(count / size) for size, count in sorted(sizes.items()) if size},
        rss_mb=rss_mb,
        cpu_ms=cpu_ms,
        latencies_ms=latencies_ms,
    )


def memory_mb(target: Target) -> dict[str, float]:
    """Role -> resident set of its largest process, MB of 10^6 bytes, now."""
    largest: dict[str, float] = {}
    for process in target.document["processes"]:
        with suppress(psutil.NoSuchProcess):
            mb = psutil.Process(process["pid"]).memory_info().rss / 1e6
            largest[process["role"]] = max(largest.get(process["role"], 0.0), round(mb, 1))
    return largest


def cpu_s(target: Target) -> dict[str, float]:
    """Role -> CPU seconds that its processes have used so far."""
    spent = {"load generator": sum(psutil.Process().cpu_times()[:2])}
    for process in target.document["processes"]:
        with suppress(psutil.NoSuchProcess):
            times = psutil.Process(process["pid"]).cpu_times()
            spent[process["role"]] = spent.get(process["role"], 0.0) + times.user + times.system
    return spent


def progress_line(say: Callable[[str], None], every_s: float = 5.0) -> Progress:
    """Says every few seconds how far the load is."""
    said_s = 0.0

    def progress(elapsed_s: float, samples: Sequence[Sample]) -> None:
        nonlocal said_s
        if elapsed_s - said_s < every_s:
            return
        said_s = elapsed_s
        recent = [sample.latency_ms for sample in samples[-200:] if sample.ok]
        last = f", p50 of the last {len(recent)}: {np.median(recent):.1f} ms" if recent else ""
        bad = sum(not sample.ok for sample in samples)
        say(f"  {elapsed_s:3.0f} s: {len(samples)} done, {bad} without actions{last}")

    return progress
