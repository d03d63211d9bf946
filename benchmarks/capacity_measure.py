"""Measures what `benchmarks/capacity.yaml` holds: what a request costs each role, and what a sink and a broker can do.

`python -m benchmarks.capacity_measure` starts a stack of its own with a device without service time, loads it
over REST and prints the figures as YAML. Costs fall with the rate, as polls and commits are shared: take those from
the highest rate that the machine bears, and the time of a hop from a rate at which nothing waits. CPU time is what
a machine shared with others still tells truly; rates are taken one after another.
"""

from __future__ import annotations

import argparse
import os
import time
import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

import psutil
import yaml
from confluent_kafka import TopicPartition
from sqlalchemy import text

from benchmarks import machine
from benchmarks.devices import INSTANT
from benchmarks.measure import Frame, measure
from benchmarks.own_stack import Deployment, Target, own_stack
from benchmarks.scenarios import Scenario
from runtime.consent import ConsentList
from runtime.database import connect
from runtime.kafka import Record, build_consumer, build_producer, end_positions, record_of
from runtime.settings import Settings
from schemas.cards import CardSet
from schemas.messages import InferenceRequest
from schemas.topics import OUTCOMES, REPLIES, REQUESTS, RESULTS, accepted_topic
from sinks.arrow_schemas import OBSERVATIONS, SCHEMAS
from sinks.lake_rows import observation_entry
from sinks.marks import Batch, Mark, Partition
from sinks.parquet_files import encode
from sinks.postgres import RESULTS_SERIES, Decoder, PostgresStore
from sinks.storage import open_storage

_IDLE_S = 8.0
_BATCH_ROWS = 500
_POSTGRES_ROUNDS = 6
_LAKE_FILES = 3
_LAKE_ROWS = 1200
_BROKER_S = 5.0
_UNREAD_PARTITION = 15


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args(arguments)
    here = machine.describe()
    deployment = Deployment("capacity", INSTANT)
    robots = 10
    scenario = Scenario(
        name="capacity", deployment=deployment, robots=robots, hz=options.rate / robots, seconds=options.seconds
    )
    with own_stack((deployment,), _say) as target:
        idle = _idle_cores(target)
        before, began_s = cpu_s(target), time.monotonic()
        measured = measure(scenario, target, Frame(), _say)
        took_s = time.monotonic() - began_s
        after = cpu_s(target)
        # What a process does without requests (heartbeats, polls, scrapes) is no cost of a request.
        requests = len(_records(target.settings, OUTCOMES))
        cost_ms = {r: (after[r] - before[r] - idle[r] * took_s) / requests * 1000 for r in sorted(before)}
        outcomes = _records(target.settings, OUTCOMES)
        accepted = _records(target.settings, accepted_topic("capacity"))
        figures = {
            "measured": {"date": here.date, "commit": here.commit, "cores": here.cores, "load": here.load_before},
            "requests": requests,
            "cpu_ms_a_request": {role: round(max(cost, 0.0), 3) for role, cost in cost_ms.items()},
            "idle_cores": {role: round(cores, 4) for role, cores in sorted(idle.items())},
            "stage_p50_ms": {name: round(q.p50, 2) for name, q in measured.stages.items()},
            "bytes_a_request": _bytes(target.settings, requests),
            "postgres_rows_a_second": round(postgres_rate(target.settings, outcomes)),
            "parquet_bytes_a_second": round(parquet_rate(target.settings, accepted)),
            "broker_bytes_a_second": round(broker_rate(target.settings)),
        }
    print(yaml.safe_dump(figures, sort_keys=False))
    return 0


def cpu_s(target: Target) -> dict[str, float]:
    """Role -> CPU seconds of its processes and their children so far."""
    used: dict[str, float] = defaultdict(float)
    for process in target.document["processes"]:
        with suppress(psutil.NoSuchProcess):
            root = psutil.Process(process["pid"])
            for one in [root, *root.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    times = one.cpu_times()
                    used[process["role"]] += times.user + times.system
    return used


def _idle_cores(target: Target) -> Mapping[str, float]:
    before = cpu_s(target)
    time.sleep(_IDLE_S)
    after = cpu_s(target)
    return {role: (after[role] - before[role]) / _IDLE_S for role in before}


def _records(settings: Settings, topic: str) -> list[Record]:
    """Everything that lies in a topic now."""
    consumer = build_consumer(settings, "capacity", group=None)
    ends = end_positions(consumer, topic)
    consumer.assign([TopicPartition(topic, number, 0) for number in ends])
    found: list[Record] = []
    while len(found) < sum(ends.values()):
        found += [record_of(m) for m in consumer.consume(500, timeout=1.0) if m.error() is None]
    consumer.close()
    return found


def _bytes(settings: Settings, requests: int) -> dict[str, int]:
    """Topic -> bytes of key, value and headers that one request leaves there."""
    sizes = {}
    for topic in (REQUESTS, accepted_topic("capacity"), RESULTS, REPLIES, OUTCOMES):
        total = 0
        for r in _records(settings, topic):
            total += len(r.key or b"") + len(r.value or b"") + sum(len(n) + len(v) for n, v in r.raw_headers)
        sizes[topic] = round(total / requests)
    return sizes


def postgres_rate(settings: Settings, records: Sequence[Record]) -> float:
    """Rows a second of one sink process: decoding, COPY, insert and mark, in batches as the sink makes them."""
    database = connect(settings, "capacity", pool_size=1)
    consents = ConsentList("none", settings.anonymization_level)
    store = PostgresStore(database, consents, "capacity")
    decode = Decoder(consents=consents, cards=CardSet(models=(), embodiments=()), fleet_of={}, min_safety_score=0.7)
    partition = Partition(OUTCOMES, 0)
    rows, took_s = 0, 0.0
    mark = store.open(partition)
    for _ in range(_POSTGRES_ROUNDS):
        with database.begin() as connection:
            connection.execute(text("TRUNCATE inference_log"))
        for start in range(0, len(records), _BATCH_ROWS):
            began_s = time.perf_counter()
            entries = tuple(decode(record) for record in records[start : start + _BATCH_ROWS])
            number = mark.next_offset + len(entries)
            after = Mark(number, {RESULTS_SERIES: number})
            store.write(partition, Batch(entries, mark, after))
            took_s += time.perf_counter() - began_s
            mark = after
            rows += len(entries)
    database.close()
    return rows / took_s


def parquet_rate(settings: Settings, records: Sequence[Record]) -> float:
    """Bytes of observations a second of one sink process: decoding, encoding and storing whole files.

    Pictures are replaced by random bytes: as little to compress in them as in JPEGs that all differ.
    """
    storage = open_storage(settings)
    size, took_s = 0, 0.0
    for number in range(_LAKE_FILES):
        fresh = [_full_consent(records[i % len(records)]) for i in range(_LAKE_ROWS)]
        began_s = time.perf_counter()
        rows = [observation_entry(record, "capacity").row for record in fresh]
        data = encode(rows, SCHEMAS[OBSERVATIONS], Partition("capacity", number), 0, Mark(len(rows)))
        storage.create(f"capacity/{uuid.uuid4()}.parquet", data)
        took_s += time.perf_counter() - began_s
        size += len(data)
    return size / took_s


def _full_consent(record: Record) -> Record:
    request = InferenceRequest.FromString(record.value or b"")
    for image in request.images:
        image.data = os.urandom(len(image.data))
    headers = [(n, b"full" if n == "consent_tier" else v) for n, v in record.raw_headers]
    return Record(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=request.SerializeToString(),
        timestamp_ms=record.timestamp_ms,
        raw_headers=headers,
    )


def broker_rate(settings: Settings) -> float:
    """Bytes a second that one broker takes from one producer of 50 KB records, all acknowledged."""
    producer = build_producer(settings, "capacity-broker")
    value = os.urandom(50_000)
    sent = 0
    began_s = time.perf_counter()
    while time.perf_counter() - began_s < _BROKER_S:
        try:
            # Replies of no API process: nothing reads them meanwhile.
            producer.produce(REPLIES, value, partition=_UNREAD_PARTITION)
            sent += 1
        except BufferError:
            producer.poll(0.01)
        producer.poll(0)
    producer.flush(30)
    return sent * len(value) / (time.perf_counter() - began_s)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
