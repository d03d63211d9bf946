"""One contract for the in-memory broker and for real Kafka: what the stages rely on, and the processor over both."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, KafkaError, TopicPartition

from runtime.kafka import Record, check_consumed, record_of
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.processor import Processor
from runtime.publisher import Delivered
from schemas.ids import partition_of
from tests.contract.brokers import TIMEOUT_S, BrokerUnderTest, InMemory, RealKafka, committed, eventually, read


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> Iterator[BrokerUnderTest]:
    made: BrokerUnderTest = (
        InMemory() if request.param == "memory" else RealKafka(request.getfixturevalue("kafka_bootstrap"))
    )
    yield made
    made.close()


def publish(
    broker: BrokerUnderTest, topic: str, records: list[tuple[bytes | None, bytes | None, Any]]
) -> list[Delivered]:
    """Publish (key, value, partition) and wait for all acknowledgements; returns them in order."""
    places: dict[int, Delivered] = {}
    failures: list[Exception] = []

    def reporter(index: int) -> Callable[[Delivered | None, Exception | None], None]:
        def report(where: Delivered | None, error: Exception | None) -> None:
            if where is not None:
                places[index] = where
            if error is not None:
                failures.append(error)

        return report

    for index, (key, value, partition) in enumerate(records):
        broker.publisher.publish(topic, value, key=key, partition=partition, on_delivery=reporter(index))
    assert broker.publisher.flush(TIMEOUT_S) == 0
    assert not failures
    return [places[index] for index in range(len(records))]


def numbered(count: int, partitions: int) -> list[tuple[bytes | None, bytes | None, Any]]:
    return [(None, b"%d" % index, index % partitions) for index in range(count)]


class Gathering:
    """Finishes each record on another thread's time; remembers everything it saw."""

    def __init__(self, hold: bool = False) -> None:
        self.lock = threading.Lock()
        self.seen: list[tuple[int, int]] = []
        self.held: list[Callable[[], None]] = []
        self.hold = hold

    def submit(self, record: Record, done: Callable[[], None]) -> None:
        with self.lock:
            self.seen.append((record.partition, record.offset))
            if self.hold:
                self.held.append(done)
                return
        done()

    def release(self) -> None:
        with self.lock:
            self.hold = False
            held, self.held = self.held, []
        for done in held:
            done()


class Member:
    """A processor on a thread."""

    def __init__(self, broker: BrokerUnderTest, group: str, topic: str, handler: Gathering, limit: int = 1000) -> None:
        self.handler = handler
        self.processor = Processor(
            build=lambda on_commit: broker.consumer(group, on_commit),
            topics=[topic],
            handler=handler,
            metrics=Metrics(),
            max_in_flight=limit,
            commit_interval_s=0.05,
        )
        self.stopping = threading.Event()
        # A daemon, so that a test that fails before it stops its member does not keep pytest alive.
        self.thread = threading.Thread(target=self.processor.run, args=(self.stopping,), daemon=True)
        self.thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()
        self.processor.close(Deadline(TIMEOUT_S))


def test_key_value_and_headers_come_back_as_they_were_written(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(1)
    headers = [("a", b"1"), ("b", b"\x00\xff"), ("a", b"2"), ("empty", b"")]
    broker.publisher.publish(topic, b"value", key=b"key", headers=headers)
    broker.publisher.publish(topic, None, key=b"tombstone")
    assert broker.publisher.flush(TIMEOUT_S) == 0
    consumer = broker.consumer("g1")
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    first, second = (record_of(message) for message in read(consumer, 2))
    consumer.close()
    assert (first.key, first.value, first.raw_headers) == (b"key", b"value", headers)
    assert (second.key, second.value, second.raw_headers) == (b"tombstone", None, [])
    assert first.timestamp_ms > 0
    assert (first.offset, second.offset) == (0, 1)


def test_keys_are_placed_by_murmur2_and_offsets_are_contiguous(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(7)
    rng = random.Random(7)
    keys = [rng.randbytes(rng.randint(1, 40)) for _ in range(300)]
    places = publish(broker, topic, [(key, b"", None) for key in keys])
    assert [where.partition for where in places] == [partition_of(key, 7) for key in keys]
    for number in range(7):
        offsets = [where.offset for where in places if where.partition == number]
        assert offsets == list(range(len(offsets)))


def test_a_burst_of_frames_for_one_partition_is_taken_whole(broker: BrokerUnderTest) -> None:
    """The broker's limit on a record is its limit on a batch of records, too."""
    topic = broker.create_topic(1)
    small, large = (b"robot", bytes(50_000), None), (b"robot", bytes(600_000), None)
    places = publish(broker, topic, [*[small] * 100, *[large] * 5])
    assert [where.offset for where in places] == list(range(105))


async def test_send_awaits_where_the_record_lies(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(3)
    first = await broker.publisher.send(topic, b"1", key=b"robot", partition=2)
    second = await broker.publisher.send(topic, b"2", partition=2)
    assert (first.topic, first.partition, first.offset, second.offset) == (topic, 2, 0, 1)
    assert second.timestamp_ms >= first.timestamp_ms > 0


def test_a_group_goes_on_behind_its_last_commit(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(1)
    publish(broker, topic, numbered(5, 1))
    consumer = broker.consumer("g2")
    consumer.subscribe([topic])
    assert [message.offset() for message in read(consumer, 3)] == [0, 1, 2]
    consumer.commit(offsets=[TopicPartition(topic, 0, 2)], asynchronous=False)
    consumer.close()
    again = broker.consumer("g2")
    again.subscribe([topic])
    assert [message.offset() for message in read(again, 3)] == [2, 3, 4]
    again.close()
    assert committed(broker, "g2", topic, 1) == [2]


def test_an_asynchronous_commit_reports_from_poll(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(1)
    publish(broker, topic, numbered(1, 1))
    reports: list[tuple[KafkaError | None, list[TopicPartition]]] = []
    consumer = broker.consumer("g3", lambda error, offsets: reports.append((error, offsets)))
    consumer.subscribe([topic])
    read(consumer, 1)
    consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=True)
    assert eventually(lambda: bool(reports), lambda: consumer.poll(0.05))
    consumer.close()
    error, offsets = reports[0]
    assert error is None
    assert [(o.topic, o.partition, o.offset, o.error) for o in offsets] == [(topic, 0, 1, None)]


def test_a_paused_partition_gives_nothing_until_it_is_resumed(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(2)
    publish(broker, topic, numbered(2, 2))
    consumer = broker.consumer("g4")
    consumer.subscribe([topic])
    read(consumer, 2)
    consumer.pause([TopicPartition(topic, 0)])
    publish(broker, topic, [(None, b"held", 0), (None, b"free", 1), (None, b"free", 1)])
    assert [message.value() for message in read(consumer, 2)] == [b"free", b"free"]
    consumer.resume([TopicPartition(topic, 0)])
    assert read(consumer, 1)[0].value() == b"held"
    consumer.close()


def test_positions_seeks_and_ends(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(1)
    publish(broker, topic, numbered(4, 1))
    partition = TopicPartition(topic, 0)
    consumer = broker.consumer("g5")
    assert tuple(consumer.get_watermark_offsets(partition, timeout=TIMEOUT_S)) == (0, 4)
    consumer.assign([TopicPartition(topic, 0, 1)])
    assert [message.offset() for message in read(consumer, 2)] == [1, 2]
    assert consumer.position([partition])[0].offset == 3
    consumer.seek(TopicPartition(topic, 0, 0))
    assert [message.offset() for message in read(consumer, 1)] == [0]
    consumer.assign([TopicPartition(topic, 0, OFFSET_END)])
    came: list[int] = []

    def one_more() -> None:
        # The end is looked up meanwhile, and what is written before it is found is not read.
        publish(broker, topic, [(None, b"new", 0)])
        message = consumer.poll(0.1)
        if message is not None and check_consumed(message):
            came.append(message.offset())

    assert eventually(lambda: bool(came), one_more)
    assert came[0] >= 4
    consumer.close()


def test_every_member_hears_of_its_assignment_even_if_it_gets_none(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(1)
    members = [Member(broker, "g6", topic, Gathering()) for _ in range(2)]
    try:
        assert eventually(lambda: all(member.processor.joined for member in members))
    finally:
        for member in members:
            member.stop()


def test_the_processor_commits_all_of_a_topic(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(3)
    publish(broker, topic, numbered(300, 3))
    member = Member(broker, "g7", topic, Gathering(), limit=10)
    try:
        assert eventually(lambda: len(member.handler.seen) == 300)
    finally:
        member.stop()
    assert committed(broker, "g7", topic, 3) == [100, 100, 100]


def test_backpressure_loses_and_doubles_nothing(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(2)
    publish(broker, topic, numbered(100, 2))
    handler = Gathering(hold=True)
    member = Member(broker, "g8", topic, handler, limit=10)
    try:
        while len(handler.seen) < 100:
            assert eventually(lambda: len(handler.held) >= min(10, 100 - len(handler.seen)) or len(handler.seen) == 100)
            assert member.processor.in_flight <= 10
            with handler.lock:
                held, handler.held = handler.held, []
            for done in held:
                done()
            assert eventually(lambda: bool(handler.held) or len(handler.seen) == 100)
    finally:
        handler.release()
        member.stop()
    assert sorted(handler.seen) == [(p, o) for p in range(2) for o in range(50)]


def test_a_stop_leaves_what_is_not_done_to_the_next_process(broker: BrokerUnderTest) -> None:
    topic = broker.create_topic(1)
    publish(broker, topic, numbered(10, 1))
    handler = Gathering(hold=True)
    member = Member(broker, "g9", topic, handler)
    assert eventually(lambda: len(handler.held) == 10)
    for index in (0, 1, 2, 5):
        handler.held[index]()
    member.stopping.set()
    member.thread.join()
    member.processor.close(Deadline(0.1))
    assert committed(broker, "g9", topic, 1) == [3]
    after = Member(broker, "g9", topic, Gathering())
    try:
        assert eventually(lambda: len(after.handler.seen) >= 7)
        assert after.handler.seen == [(0, offset) for offset in range(3, 10)]
    finally:
        after.stop()


def test_a_rebalance_loses_nothing_and_hands_over_only_what_is_done(broker: BrokerUnderTest) -> None:
    topic, group = broker.create_topic(4), "g10"
    publish(broker, topic, numbered(200, 4))
    first = Member(broker, group, topic, Gathering(hold=True))
    assert eventually(lambda: len(first.handler.seen) >= 200), len(first.handler.seen)
    assert len(first.handler.seen) == 200
    second = Member(broker, group, topic, Gathering())
    # The first member gives nothing up before its records are done, and then nothing of them is done again.
    first.handler.release()
    rounds = 0

    def one_more_round() -> None:
        nonlocal rounds
        rounds += 1
        publish(broker, topic, numbered(4, 4))

    try:
        assert eventually(lambda: bool(second.handler.seen), one_more_round)
        ends = 50 + rounds
        expected = {(number, offset) for number in range(4) for offset in range(ends)}
        assert eventually(lambda: {*first.handler.seen, *second.handler.seen} == expected)
    finally:
        first.stop()
        second.stop()
    assert max(Counter([*first.handler.seen, *second.handler.seen]).values()) == 1
    assert committed(broker, group, topic, 4) == [ends] * 4
