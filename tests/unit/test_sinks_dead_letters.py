"""Dead letters keep the record whole and say why it died."""

from __future__ import annotations

import pytest

from runtime.dead_letters import CUT_BYTES, dead_letter_headers, send_dead_letter, stack_trace, write_dead_letter
from runtime.errors import Poison, Unavailable
from runtime.kafka import MAX_RECORD_BYTES, Record
from runtime.metrics import Metrics
from schemas import headers as h
from schemas.topics import dead_letter_topic
from tests.in_memory import InMemoryBroker

TOPIC = "vla.outcomes.v1"


def poison() -> Poison:
    try:
        raise Poison("undecodable", "the value is n\N{LATIN SMALL LETTER O WITH DIAERESIS} Outcome")
    except Poison as error:
        return error


def dead_record(value: bytes | None = b"\xff\x00", raw_headers: h.RawHeaders | None = None) -> Record:
    return Record(
        topic=TOPIC, partition=2, offset=9, key=b"robot", value=value, timestamp_ms=5, raw_headers=raw_headers or []
    )


def headers_of(record: Record) -> dict[str, str]:
    return h.decode(dead_letter_headers(record, reason="undecodable", stage="decode", group="g", error=poison()))


def test_headers_are_those_of_kafka_connect() -> None:
    headers = headers_of(dead_record())
    prefix = "__connect.errors."
    assert {name.removeprefix(prefix) for name in headers if name.startswith(prefix)} >= {
        "topic", "partition", "offset", "connector.name", "task.id", "stage", "class.name",
        "exception.class.name", "exception.message",
    }  # fmt: skip
    assert (headers[prefix + "topic"], headers[prefix + "partition"], headers[prefix + "offset"]) == (TOPIC, "2", "9")
    assert headers[prefix + "exception.class.name"] == "runtime.errors.Poison"
    assert headers[prefix + "exception.message"] == "the value is n? Outcome"
    assert (headers["dlq.group"], headers["dlq.reason"], headers["dlq.timestamp_ms"]) == ("g", "undecodable", "5")


def test_headers_of_the_record_stay_and_forged_ones_go() -> None:
    record = dead_record(raw_headers=[("request_id", b"r1"), ("__connect.errors.topic", b"x"), ("dlq.group", b"y")])
    headers = headers_of(record)
    assert headers["request_id"] == "r1"
    assert (headers["__connect.errors.topic"], headers["dlq.group"]) == (TOPIC, "g")


def test_a_stack_trace_names_files_and_no_folders_of_this_machine() -> None:
    trace = stack_trace(poison())
    assert trace.startswith("unit/test_sinks_dead_letters.py:")
    assert not any(line.startswith("/") for line in trace.splitlines())


def test_the_record_lies_whole_under_its_topics_dead_letters() -> None:
    broker, metrics = InMemoryBroker({dead_letter_topic(TOPIC): 1}), Metrics()
    write_dead_letter(
        broker.publisher(), metrics, dead_record(), reason="undecodable", stage="decode", group="g", error=poison()
    )
    (letter,) = broker.records(dead_letter_topic(TOPIC))
    assert (letter.key, letter.value) == (b"robot", b"\xff\x00")
    labels = {"topic": TOPIC, "reason": "undecodable"}
    assert metrics.registry.get_sample_value("vla_dead_letters_total", labels) == 1


async def test_an_agent_waits_until_the_broker_has_the_letter() -> None:
    broker = InMemoryBroker({dead_letter_topic(TOPIC): 1})
    where = await send_dead_letter(
        broker.publisher(), Metrics(), dead_record(), reason="r", stage="decode", group="g", error=poison()
    )
    assert (where.topic, where.offset) == (dead_letter_topic(TOPIC), 0)


def test_a_letter_that_the_broker_did_not_take_is_not_counted() -> None:
    broker, metrics = InMemoryBroker({dead_letter_topic(TOPIC): 1}), Metrics()
    publisher = broker.publisher()
    publisher.fail_next(dead_letter_topic(TOPIC), Unavailable("away"))
    with pytest.raises(Unavailable):
        write_dead_letter(publisher, metrics, dead_record(), reason="r", stage="s", group="g", error=poison())
    assert metrics.registry.get_sample_value("vla_dead_letters_total", {"topic": TOPIC, "reason": "r"}) is None


def test_a_record_as_large_as_the_broker_lets_in_still_fits() -> None:
    broker = InMemoryBroker({dead_letter_topic(TOPIC): 1})
    record = dead_record(b"x" * MAX_RECORD_BYTES, [("junk", b"y" * 100_000), ("request_id", b"r1")])
    write_dead_letter(broker.publisher(), Metrics(), record, reason="r", stage="s", group="g", error=poison())
    (letter,) = broker.records(dead_letter_topic(TOPIC))
    size = len(letter.value or b"") + sum(len(name) + len(value) for name, value in letter.raw_headers)
    assert size < MAX_RECORD_BYTES
    assert int(letter.headers[CUT_BYTES]) == MAX_RECORD_BYTES - len(letter.value or b"")
