"""What lies in the log after a run: outcomes as they were decided, and when each input had its output."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing

from confluent_kafka import TopicPartition
from google.protobuf.message import DecodeError

from runtime.kafka import Record, build_consumer, end_positions, record_of
from runtime.settings import Settings
from schemas import headers as h
from schemas.messages import Completion, Outcome
from schemas.topics import OUTCOMES, RESULTS, accepted_topic
from tests.faults.ledger import Decided
from tests.faults.offsets import Flow


def records(settings: Settings, topic: str) -> Iterator[Record]:
    """Everything that a topic holds now."""
    with closing(build_consumer(settings, "fault-log", group=None)) as consumer:
        ends = {partition: end for partition, end in end_positions(consumer, topic).items() if end}
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        while ends:
            message = consumer.poll(10)
            assert message is not None, f"{topic} could not be read to its end"
            if message.error() is not None:
                continue
            record = record_of(message)
            yield record
            if record.offset + 1 >= ends.get(record.partition, 0):
                ends.pop(record.partition, None)


def outcomes(settings: Settings) -> list[tuple[Outcome, Record]]:
    """Those that can be read: poison on the topic is not the gate's."""
    found = []
    for record in records(settings, OUTCOMES):
        try:
            outcome = Outcome.FromString(record.value or b"")
        except DecodeError:
            continue
        if outcome.row_id and outcome.request.HasField("source"):
            found.append((outcome, record))
    return found


def decided(found: list[tuple[Outcome, Record]]) -> list[Decided]:
    return [
        Decided(
            request_id=outcome.request.request_id,
            row_id=outcome.row_id,
            robot_id=outcome.request.robot_id,
            step=outcome.request.step,
            code=outcome.rejection.code if outcome.HasField("rejection") else "",
            result_id=outcome.chunk.result.result_id if outcome.HasField("chunk") else "",
            source=(
                outcome.request.source.topic,
                outcome.request.source.partition,
                outcome.request.source.offset,
            ),
            place=(record.partition, record.offset),
        )
        for outcome, record in found
    ]


def gate_flow(settings: Settings, found: list[tuple[Outcome, Record]], deployments: Sequence[str]) -> Flow:
    """Requests to what was accepted, refused or decided of them; completions to outcomes."""
    flow = Flow()
    decided_s: dict[str, float] = {}
    for outcome, record in found:
        source = outcome.request.source
        at_s = record.timestamp_ms / 1000
        flow.note(source.topic, source.partition, source.offset, at_s)
        decided_s[outcome.row_id] = min(at_s, decided_s.get(outcome.row_id, at_s))
    for record in (one for name in deployments for one in records(settings, accepted_topic(name))):
        if h.SOURCE in record.headers:
            source_at = h.Source.parse(record.headers[h.SOURCE])
            flow.note(source_at.topic, source_at.partition, source_at.offset, record.timestamp_ms / 1000)
    for record in records(settings, RESULTS):
        try:
            completion = Completion.FromString(record.value or b"")
        except DecodeError:
            continue
        if completion.row_id in decided_s:
            flow.note(RESULTS, record.partition, record.offset, decided_s[completion.row_id])
            # A request that is refused at once goes straight to the results.
            source = completion.request.source
            flow.note(source.topic, source.partition, source.offset, record.timestamp_ms / 1000)
    return flow
