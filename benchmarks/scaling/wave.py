"""A wave of load on a fresh stack whose GPU consumers the autoscaler adds and drains, and what came of each request."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import TopicPartition

from benchmarks import frames
from benchmarks.devices import SimulatedDevice
from benchmarks.direct import DirectClients
from benchmarks.load import Answer, Shot, open_loop
from benchmarks.load import Sample as Request
from benchmarks.own_stack import Deployment, Target, own_stack
from benchmarks.rest import RestClients
from benchmarks.scaling.driver import Driver, Lags, Sample
from benchmarks.scaling.scaled_object import ScaledObject
from runtime.kafka import build_consumer, end_positions
from runtime.settings import Settings
from schemas.messages import Outcome
from schemas.topics import OUTCOMES, accepted_topic, worker_group
from sinks.books import Books, read_books

MODEL = "scaled"
#: Slow, so that two cores feed more of them than the wave needs: 8 requests a second in batches of 4.
DEVICE = SimulatedDevice("slow", 100.0, 100.0, (1, 2, 4), "no table: made slow so that two cores feed several")
#: Nobody is refused for waiting while consumers start.
TTL_MS = 60_000
_ROBOTS = 24
_FRAME_BYTES = 20_000

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Phase:
    """So many requests a second for so long."""

    seconds: float
    rate_hz: float


@dataclass(frozen=True, slots=True)
class Run:
    """requests: in the order in which they were due. samples: of the autoscaler. decided: request id -> the distinct
    outcomes that the log has of it. served: worker -> requests that it served."""

    began_s: float
    phases: tuple[Phase, ...]
    requests: Sequence[Request]
    samples: Sequence[Sample]
    decided: dict[str, set[str]]
    served: dict[str, int]
    books: Books

    @property
    def peak(self) -> int:
        return max(sample.ready for sample in self.samples)

    def faults(self) -> list[str]:
        """What a wave must not leave behind; empty if nothing was lost, doubled or left over."""
        ids = [request.answer.request_id for request in self.requests]
        unanswered = [request.answer.code for request in self.requests if not request.ok]
        none = [one for one in ids if not self.decided.get(one)]
        several = [one for one in ids if len(self.decided.get(one, ())) > 1]
        last = self.samples[-1]
        found = [
            (unanswered, f"{len(unanswered)} requests brought no actions: {sorted(set(unanswered))}"),
            (none, f"{len(none)} requests have no outcome"),
            (several, f"{len(several)} requests have different outcomes"),
            (not self.books.balanced, self.books.explain()),
            (last.lag, f"{last.lag} requests were left over"),
        ]
        return [text for wrong, text in found if wrong]


def shots(phases: Sequence[Phase], robots: int = _ROBOTS) -> list[Shot]:
    """Evenly spaced within each phase, robots in turn, each with steps of its own."""
    found: list[Shot] = []
    begin_s = 0.0
    for phase in phases:
        for number in range(round(phase.seconds * phase.rate_hz)):
            count = len(found)
            found.append(Shot(begin_s + number / phase.rate_hz, count % robots, count // robots))
        begin_s += phase.seconds
    return found


def play(
    phases: Sequence[Phase], spec: ScaledObject, *, folder: Path, say: Say, device: SimulatedDevice = DEVICE
) -> Run:
    """Start a stack with one GPU consumer, send the wave, and wait until the scaler is back at its minimum.

    spec: its group and topic are replaced by those of the stack's own deployment. Raises Fatal.
    """
    group, topic = worker_group(MODEL), accepted_topic(MODEL)
    spec = spec.model_copy(update={"group": group, "topic": topic})
    # Faces are looked for by the sink, at a price that has nothing to do with what is watched here.
    env = {"PARQUET_FLUSH_INTERVAL_S": "2", "ANONYMIZATION_LEVEL": "partial"}
    with own_stack((Deployment(MODEL, device),), say, env=env, folder=folder) as target:
        stack_file = folder.absolute() / "stack.json"
        lags = Lags(target.settings, group, topic)
        with Driver(spec, lags=lags.look, stack_file=stack_file, role=f"gpu {MODEL}", say=say) as driver:
            began_s = time.time()
            requests = asyncio.run(_send(shots(phases), target, say))
            least = max(spec.min_replica_count, 1)
            driver.wait_for(lambda seen: seen.lag == 0 and seen.running == least, 180)
        decided, served = outcomes(target.settings)
        books = read_books(target.settings, wait_s=60)
    return Run(began_s, tuple(phases), requests, driver.samples, decided, served, books)


async def _send(wave: Sequence[Shot], target: Target, say: Say) -> list[Request]:
    """Robots of even number ask over REST, the others produce to Kafka themselves."""
    pictures = frames.views(8, 1, _FRAME_BYTES, 320, 240)
    rest = RestClients(target.api, target.api_key, model=MODEL, views=pictures, ttl_ms=TTL_MS)
    bootstrap = target.settings.kafka_bootstrap_servers
    direct = DirectClients(bootstrap, fleet=target.fleet, model=MODEL, views=pictures, ttl_ms=TTL_MS)
    said = 0

    async def send(robot: int, step: int) -> Answer:
        return await (direct if robot % 2 else rest).send(robot, step)

    def progress(elapsed_s: float, samples: Sequence[Request]) -> None:
        nonlocal said
        if elapsed_s >= said + 10:
            said = int(elapsed_s)
            say(f"{said} s: {sum(sample.ok for sample in samples)} of {len(wave)} answered")

    async with rest, direct:
        return await open_loop(wave, send, progress, grace_s=TTL_MS / 1000)


def outcomes(settings: Settings) -> tuple[dict[str, set[str]], dict[str, int]]:
    """Of the whole log: request id -> its distinct outcomes; worker -> requests that it served."""
    decided: dict[str, set[str]] = defaultdict(set)
    served: dict[str, set[str]] = defaultdict(set)
    consumer = build_consumer(settings, "wave-outcomes", group=None)
    try:
        ends = {number: end for number, end in end_positions(consumer, OUTCOMES).items() if end}
        consumer.assign([_first(number) for number in ends])
        while ends:
            message = consumer.poll(10)
            assert message is not None, f"{OUTCOMES} could not be read to its end"
            if message.error() is not None:
                continue
            outcome = Outcome.FromString(message.value() or b"")
            request_id = outcome.request.request_id
            if outcome.HasField("chunk"):
                result = outcome.chunk.result
                decided[request_id].add(f"{outcome.row_id} {result.result_id}")
                served[result.worker_id].add(request_id)
            else:
                decided[request_id].add(f"{outcome.row_id} {outcome.rejection.code}")
            number, offset = message.partition(), message.offset()
            if number is not None and offset is not None and offset + 1 >= ends.get(number, 0):
                ends.pop(number, None)
    finally:
        consumer.close()
    return dict(decided), {worker: len(requests) for worker, requests in served.items()}


def _first(number: int) -> TopicPartition:
    return TopicPartition(OUTCOMES, number, 0)
