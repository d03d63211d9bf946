"""Capacity: what a fleet demands of each part, and a discrete-event simulation of it. No I/O but reading the YAML.

Devices are simulated throughout: their batches take the time of a published table. The batching is not: each
simulated worker drives the product's own BatchQueue and CostModel, on simulated time.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import simpy
import yaml

from benchmarks.devices import DEVICES, SimulatedDevice
from gpu_consumers.batching import BatchQueue, Dispatch, Wait, Waiting
from gpu_consumers.cost import CostModel
from gpu_consumers.sizing import bucket
from runtime.rates import EventRate
from schemas.ids import partition_of

#: Requests of the first part of a simulated run are not counted: the queues start empty.
WARM_UP_SHARE = 0.25
#: The way back that a worker sets aside, as gpu_consumers.infer_stage does.
_WAY_BACK_S = 0.025
_WORKER_QUEUE = 128
_CUSTOMERS = 20
Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class Fleet:
    """What is asked for: chosen, not measured."""

    robots: int
    hz: float
    gpus: int
    ttl_ms: float
    #: Highest share of a part's time that is planned for.
    planned_load: float
    replication: int
    broker_cores: int
    partitions_a_gpu: int

    @property
    def requests_s(self) -> float:
        return self.robots * self.hz


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of server. Every part's cost is reduced to seconds of one server's time for one request."""

    name: str
    seconds: float
    #: What one adds where it saturates.
    adds: str

    def load(self, requests_s: float, servers: int) -> float:
        """Share of time in work; beyond 1 the part cannot keep up."""
        return requests_s * self.seconds / servers

    def needed(self, requests_s: float, planned_load: float) -> int:
        """Servers that keep the load at or below `planned_load`."""
        # A hair less, so that 3.0000000001 servers are 3.
        return max(1, math.ceil(requests_s * self.seconds / planned_load - 1e-9))

    def saturates_at(self, servers: int) -> float:
        """Requests a second at a load of 1."""
        return servers / self.seconds if self.seconds else math.inf


@dataclass(frozen=True, slots=True)
class Inputs:
    """benchmarks/capacity.yaml: every figure with its source."""

    fleet: Fleet
    device: SimulatedDevice
    figures: Mapping[str, float]
    sources: Mapping[str, str]

    def parts(self) -> tuple[Part, ...]:
        """In the order of the flow; the device last. All figures are for one request with one frame."""
        f = self.figures
        copies = self.fleet.replication
        large, small = f["request_bytes"] + f["accepted_bytes"], f["results_bytes"] + f["outcomes_bytes"]
        written = (large + small + f["replies_bytes"]) * copies
        # The narrower of the two: processors or bytes. A follower is taken to cost as much as the leader that was
        # measured, which served the readers as well.
        broker_s = max(f["broker_cpu_ms"] / 1000 * copies / self.fleet.broker_cores, written / f["broker_bytes_s"])
        return (
            Part("api", f["api_cpu_ms"] / 1000, "API processes: stateless, one replies partition each"),
            Part("broker", broker_s, "brokers, then move partition leaders"),
            Part("gate", f["gate_cpu_ms"] / 1000, "gate processes, up to the partitions of vla.requests.v1"),
            Part("gpu host", f["gpu_host_cpu_ms"] / 1000, "nothing: it comes with each GPU"),
            Part("sink postgres", 1 / f["postgres_rows_s"], "sink processes; then a Postgres of its own per fleet"),
            Part("sink parquet", f["lake_bytes"] / f["parquet_bytes_s"], "sink processes: each writes its partitions"),
            Part("gpu", 1 / self.device.best_rate, "GPUs, and accepted partitions in step with them"),
        )

    def installed(self, fleet: Fleet) -> dict[str, int]:
        """Part -> servers for the fleet at its planned load; GPUs as many as it has."""
        counts = {part.name: part.needed(fleet.requests_s, fleet.planned_load) for part in self.parts()}
        return {**counts, "gpu": fleet.gpus, "gpu host": fleet.gpus}


def load_inputs(path: Path) -> Inputs:
    """Raises ValueError for a figure without date or source."""
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, entry in document["figures"].items():
        if not entry.get("source") or not entry.get("date"):
            raise ValueError(f"{path}: figure {name} needs a date and a source")
    return Inputs(
        fleet=Fleet(**document["fleet"]),
        device=DEVICES[document["device"]],
        figures={name: float(entry["value"]) for name, entry in document["figures"].items()},
        sources={name: f"{entry['source']} ({entry['date']})" for name, entry in document["figures"].items()},
    )


class Station:
    """Servers of one kind, each first come, first served. A server is known by what decides: its number."""

    def __init__(self, servers: int) -> None:
        self._free_s = [0.0] * servers
        self._work = [0.0] * servers

    def book(self, number: int, now_s: float, service_s: float) -> float:
        """Give server `number` (any integer: modulo the servers) this work; returns how long until it is done."""
        i = number % len(self._free_s)
        self._free_s[i] = max(self._free_s[i], now_s) + service_s
        self._work[i] += service_s
        return self._free_s[i] - now_s

    def loads(self, seconds: float) -> list[float]:
        """Offered load of each server: work given over time passed."""
        return [work / seconds for work in self._work]


@dataclass
class Run:
    """What a simulated run gave."""

    #: Requests that were due in the counted part.
    asked: int = 0
    latencies_s: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    batches: Counter[int] = field(default_factory=Counter)
    loads: dict[str, list[float]] = field(default_factory=dict)

    @property
    def answered_share(self) -> float:
        """Share answered before the deadline; what is still open counts against it."""
        return self.outcomes["answered"] / self.asked if self.asked else math.nan

    @property
    def mean_batch(self) -> float:
        return sum(n * count for n, count in self.batches.items()) / max(sum(self.batches.values()), 1)

    def latency_ms(self, quantile: float) -> float:
        """Of the answered ones."""
        return float(np.quantile(self.latencies_s, quantile) * 1000) if self.latencies_s else math.nan


@dataclass(slots=True)
class _Job:
    robot: int
    due_s: float
    deadline_s: float = math.inf


class Worker:
    """One GPU worker: its partitions of the log, the product's queue, and a simulated device."""

    def __init__(self, env: simpy.Environment, device: SimulatedDevice, finished: Any) -> None:
        self._env, self._device, self._finished = env, device, finished
        cost = CostModel()
        for size in device.batch_sizes:
            cost.observe(size, device.batch_ms(size) / 1000)
        self._queue: BatchQueue[_Job] = BatchQueue(
            capacity=max(_WORKER_QUEUE, 4 * max(device.batch_sizes)),
            batch_sizes=device.batch_sizes,
            cost=cost,
            arrivals=EventRate(),
        )
        self._room = max(_WORKER_QUEUE, 4 * max(device.batch_sizes))
        #: Records that the worker has not read: its partitions are paused while its queue is full.
        self._log: deque[Waiting[_Job]] = deque()
        self._arrived: simpy.Event | None = None
        self.busy_s = 0.0
        self.batches: Counter[int] = Counter()
        env.process(self._serve())

    def arrive(self, job: _Job) -> None:
        now_s = self._env.now
        due_s = job.deadline_s - min(_WAY_BACK_S, 0.1 * max(job.deadline_s - now_s, 0.0))
        customer = str(job.robot % _CUSTOMERS)
        self._log.append(Waiting(str(job.robot), now_s, due_s, False, job, customer=customer))
        self._read()
        if self._arrived is not None and not self._arrived.triggered:
            self._arrived.succeed()

    def _read(self) -> None:
        now_s = self._env.now
        while self._log and len(self._queue) < self._room:
            waiting = self._log.popleft()
            if self._queue.too_late(waiting.deadline_s, now_s):
                self._finished(waiting.item, "expired")
                continue
            self._queue.offer(waiting)
            if len(self._queue) > self._queue.max_batch:
                self._expire()

    def _expire(self) -> None:
        for waiting in self._queue.take_expired(self._env.now):
            self._finished(waiting.item, "expired")

    def _serve(self) -> Steps:
        while True:
            self._expire()
            self._read()
            decision = self._queue.decide(self._env.now)
            if not isinstance(decision, Dispatch):
                self._arrived = self._env.event()
                waits = [self._arrived]
                if isinstance(decision, Wait):
                    waits.append(self._env.timeout(decision.seconds))
                yield self._env.any_of(waits)
                continue
            size = len(decision.batch)
            took_s = self._device.batch_ms(bucket(size, self._device.batch_sizes)) / 1000
            yield self._env.timeout(took_s)
            self.busy_s += took_s
            self.batches[size] += 1
            self._queue.measured(size, took_s, self._env.now)
            for waiting in decision.batch:
                self._finished(waiting.item, "answered")


def simulate(
    inputs: Inputs, fleet: Fleet, servers: Mapping[str, int], seconds: float, *, dealt: bool = False, seed: int = 0
) -> Run:
    """Robots that ask at a fixed rate from random phases, for `seconds` of simulated time.

    A robot's partition is that of its key, as in the product, and decides its gate and its GPU. `dealt`: robots
    are dealt evenly over the GPUs instead, to show what placing by key costs. Work on hosts takes exponential
    time of the measured mean. Latency counts from when the robot asked until the API has answered.
    """
    env = simpy.Environment()
    rng = random.Random(seed)
    parts = {part.name: part for part in inputs.parts()}
    stations = {name: Station(servers[name]) for name in parts if name != "gpu"}
    hop_s = inputs.figures["hop_ms"] / 1000
    gpu_partitions = fleet.partitions_a_gpu * fleet.gpus
    gate_partitions = 4 * servers["gate"]
    place = [partition_of(b"robot-%d" % robot, gate_partitions) for robot in range(fleet.robots)]
    device_of = [
        (robot if dealt else partition_of(b"robot-%d" % robot, gpu_partitions)) % fleet.gpus
        for robot in range(fleet.robots)
    ]
    run = Run()
    # What is asked near the end cannot have been answered yet.
    warm_s, last_s = WARM_UP_SHARE * seconds, seconds - fleet.ttl_ms / 1000 - 0.5

    def work(part: str, number: int, share: float = 1.0) -> float:
        mean_s = parts[part].seconds * share
        return stations[part].book(number, env.now, rng.expovariate(1 / mean_s) if mean_s else 0.0)

    def finished(job: _Job, how: str) -> None:
        env.process(back(job, how))

    workers = [Worker(env, inputs.device, finished) for _ in range(fleet.gpus)]

    def there(job: _Job) -> Steps:
        yield env.timeout(work("api", job.robot, 0.5))
        yield env.timeout(work("broker", place[job.robot], 0.5) + hop_s)
        job.deadline_s = env.now + fleet.ttl_ms / 1000
        yield env.timeout(work("gate", place[job.robot], 0.5))
        gpu = device_of[job.robot]
        yield env.timeout(work("broker", gpu, 0.5) + hop_s)
        yield env.timeout(work("gpu host", gpu))
        workers[gpu].arrive(job)

    def back(job: _Job, how: str) -> Steps:
        yield env.timeout(hop_s)
        yield env.timeout(work("gate", place[job.robot], 0.5))
        work("sink postgres", place[job.robot])
        work("sink parquet", device_of[job.robot])
        yield env.timeout(hop_s)
        yield env.timeout(work("api", job.robot, 0.5))
        # The API's patience begins when it was asked, the deadline that travels when the log had the request.
        if how == "answered" and env.now > job.due_s + fleet.ttl_ms / 1000:
            how = "late"
        if warm_s <= job.due_s < last_s:
            run.outcomes[how] += 1
            if how == "answered":
                run.latencies_s.append(env.now - job.due_s)

    def ask() -> Steps:
        period_s = 1 / fleet.hz
        due = [(rng.random() * period_s, robot) for robot in range(fleet.robots)]
        heapq.heapify(due)
        while due[0][0] < seconds:
            due_s, robot = due[0]
            if due_s > env.now:
                yield env.timeout(due_s - env.now)
            heapq.heapreplace(due, (due_s + period_s, robot))
            run.asked += warm_s <= due_s < last_s
            env.process(there(_Job(robot, due_s)))

    env.process(ask())
    env.run(until=seconds)
    run.loads = {name: station.loads(seconds) for name, station in stations.items()}
    run.loads["gpu"] = [worker.busy_s / seconds for worker in workers]
    run.batches = sum((worker.batches for worker in workers), Counter())
    return run


def spread(robots: int, gpus: int, partitions_a_gpu: int) -> Sequence[int]:
    """Robots of each GPU, as the partitions of their keys place them."""
    counts = Counter(partition_of(b"robot-%d" % r, partitions_a_gpu * gpus) % gpus for r in range(robots))
    return [counts[gpu] for gpu in range(gpus)]
