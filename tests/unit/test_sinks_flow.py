"""The loop of a sink, over a broker in memory and a store that can be told to fail."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from confluent_kafka import TopicPartition

from runtime.dead_letters import GROUP, REASON
from runtime.errors import Poison, Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from schemas.topics import dead_letter_topic
from sinks.flow import Flow
from sinks.marks import Batch, Entry, Limits, Mark, Partition
from sinks.store import Fenced, Skip
from tests.in_memory import InMemoryBroker, InMemoryConsumer

TOPIC = "t"
NAME = "sink-test"


class ListStore:
    """Rows of every partition, behind a mark each."""

    server = "list"

    def __init__(self) -> None:
        self.marks: dict[Partition, Mark] = {}
        self.rows: list[int] = []
        self.away = False
        #: Called in the next write, before the mark is compared.
        self.before_write: Callable[[], None] | None = None
        #: The next write is done, and its answer is lost.
        self.lose_answer = False

    def ping(self) -> None:
        self._check()

    def dataset(self, topic: str) -> str:
        return topic

    def open(self, partition: Partition) -> Mark:
        self._check()
        return self.marks.get(partition, Mark())

    def write(self, partition: Partition, batch: Batch[int]) -> None:
        self._check()
        if self.before_write is not None:
            call, self.before_write = self.before_write, None
            call()
        if self.marks.get(partition, Mark()) != batch.before:
            raise Fenced("the mark has moved")
        self.rows += batch.rows
        self.marks[partition] = batch.after
        if self.lose_answer:
            self.lose_answer = False
            raise Unavailable("the connection broke")

    def _check(self) -> None:
        if self.away:
            raise Unavailable("away")


def decode(record: Record) -> Entry[int]:
    if record.value == b"skip":
        raise Skip("consent")
    if record.value == b"poison":
        raise Poison("undecodable", "not a number")
    number = int(record.value or b"")
    return Entry(
        offset=record.offset, row=number, series="s", number=number, size_bytes=10, timestamp_ms=record.timestamp_ms
    )


class Case:
    def __init__(self, limits: Limits | None = None, total_bytes: int = 1000) -> None:
        self.broker = InMemoryBroker({TOPIC: 1, dead_letter_topic(TOPIC): 1})
        self.store = ListStore()
        self.metrics = Metrics()
        self.now_s = 100.0
        self.limits = limits or Limits(rows=2, size_bytes=1000, age_s=5)
        self.total_bytes = total_bytes

    def flow(self) -> tuple[Flow[int], InMemoryConsumer]:
        consumer = self.broker.consumer(NAME)
        flow = Flow(
            name=NAME,
            consumer=consumer,
            topics=[TOPIC],
            decode=decode,
            store=self.store,
            limits=self.limits,
            total_bytes=self.total_bytes,
            publisher=self.broker.publisher(),
            metrics=self.metrics,
            clock=lambda: self.now_s,
            poll_s=0,
        )
        flow.run(_stopped())
        return flow, consumer

    def append(self, *values: object) -> None:
        publisher = self.broker.publisher()
        for value in values:
            publisher.publish(TOPIC, str(value).encode(), key=b"k", partition=0)

    @property
    def committed(self) -> int | None:
        return self.broker.committed(NAME, TOPIC, 0)

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def _stopped() -> threading.Event:
    """With this, `run` subscribes and comes back, and the test goes round by itself."""
    event = threading.Event()
    event.set()
    return event


def rounds(flow: Flow[int], number: int = 3) -> None:
    for _ in range(number):
        flow.round()


def test_a_full_batch_is_written_and_a_part_waits_for_its_time() -> None:
    case = Case()
    case.append(0, 1, 2)
    flow, _ = case.flow()
    rounds(flow)
    assert case.store.rows == [0, 1]
    case.now_s += 5
    rounds(flow)
    assert case.store.rows == [0, 1, 2]
    assert case.sample("vla_sink_rows_total", sink=NAME, dataset=TOPIC) == 3


def test_a_stop_writes_and_commits_what_is_buffered() -> None:
    case = Case()
    case.append(0, 1, 2)
    flow, _ = case.flow()
    rounds(flow)
    flow.drain(Deadline(5))
    flow.close(Deadline(5))
    assert (case.store.rows, case.committed) == ([0, 1, 2], 3)


def test_a_process_that_ends_without_a_commit_repeats_nothing() -> None:
    case = Case()
    case.append(0, 1, 2, 3)
    flow, consumer = case.flow()
    rounds(flow, 2)
    assert case.store.rows
    case.broker.evict(consumer)
    case.broker.group(NAME).committed.clear()
    again, _ = case.flow()
    rounds(again, 5)
    assert case.store.rows == [0, 1, 2, 3]


def test_a_lost_answer_to_a_write_repeats_nothing() -> None:
    case = Case()
    case.append(0, 1, 2, 3)
    flow, _ = case.flow()
    case.store.lose_answer = True
    for _ in range(6):
        rounds(flow)
        case.now_s += 5
    assert case.store.rows == [0, 1, 2, 3]


def test_while_the_store_is_away_polling_goes_on_and_nothing_is_lost() -> None:
    case = Case()
    flow, consumer = case.flow()
    rounds(flow)
    case.store.away = True
    case.append(*range(7))
    rounds(flow, 5)
    assert case.store.rows == []
    assert case.sample("vla_dependency_up", server="list") == 0
    # A whole batch waits, so reading on would only fill memory.
    assert consumer.poll(0) is None
    case.store.away = False
    for _ in range(5):
        case.now_s += 10
        rounds(flow)
    assert case.store.rows == list(range(7))
    assert case.sample("vla_dependency_up", server="list") == 1


def test_a_sink_that_starts_while_the_store_is_away_waits_and_says_so() -> None:
    case = Case()
    case.store.away = True
    case.append(0, 1)
    flow, _ = case.flow()
    assert len(flow.waiting()) == 2
    rounds(flow)
    assert flow.waiting() == ["list to answer for the first time"]
    case.store.away = False
    case.now_s += 10
    rounds(flow)
    assert (flow.waiting(), case.store.rows) == ([], [0, 1])


def test_a_process_that_lost_its_partition_unnoticed_writes_nothing_twice() -> None:
    case = Case()
    case.append(0, 1, 2, 3)
    flow, _ = case.flow()

    def somebody_else_writes() -> None:
        case.store.rows += [0, 1, 2]
        case.store.marks[Partition(TOPIC, 0)] = Mark(3, {"s": 2})

    case.store.before_write = somebody_else_writes
    rounds(flow, 4)
    case.now_s += 5
    rounds(flow)
    assert case.store.rows == [0, 1, 2, 3]


def test_a_mark_that_went_back_is_read_again_from_there() -> None:
    case = Case()
    case.append(0, 1, 2, 3)
    flow, _ = case.flow()
    rounds(flow)
    case.store.rows.clear()
    case.store.marks.clear()
    case.broker.group(NAME).committed.clear()
    case.append(4, 5)
    rounds(flow, 5)
    assert case.store.rows == [0, 1, 2, 3, 4, 5]


def test_repeats_upstream_are_counted_and_not_written() -> None:
    case = Case()
    case.append(0, 1, 0, 1, 2, 3)
    flow, _ = case.flow()
    rounds(flow, 5)
    assert case.store.rows == [0, 1, 2, 3]
    assert case.sample("vla_sink_skipped_total", sink=NAME, dataset=TOPIC, reason="repeat") == 2


def test_records_that_become_no_row_are_counted_and_committed() -> None:
    case = Case()
    case.append("skip", "skip")
    flow, _ = case.flow()
    rounds(flow)
    case.now_s += 5
    rounds(flow)
    assert (case.store.rows, case.committed) == ([], 2)
    assert case.sample("vla_sink_skipped_total", sink=NAME, dataset=TOPIC, reason="consent") == 2


def test_more_records_than_one_round_takes_come_through_whole() -> None:
    case = Case(Limits(rows=10_000, size_bytes=10**9, age_s=5), total_bytes=10**9)
    case.append(*range(1234))
    flow, _ = case.flow()
    rounds(flow, 6)
    flow.drain(Deadline(5))
    assert case.store.rows == list(range(1234))


def test_a_record_lost_on_its_way_is_read_again() -> None:
    case = Case(Limits(rows=100, size_bytes=1000, age_s=5))
    case.append(0, 1)
    flow, consumer = case.flow()
    rounds(flow)
    case.append(2, 3, 4)
    consumer.seek(TopicPartition(TOPIC, 0, 4))
    rounds(flow, 4)
    flow.drain(Deadline(5))
    assert case.store.rows == [0, 1, 2, 3, 4]
    assert case.sample("vla_offset_gaps_total") == 1


def test_offsets_that_the_log_itself_lacks_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(Limits(rows=100, size_bytes=1000, age_s=5))
    case.append(*range(5))
    case.store.marks[Partition(TOPIC, 0)] = Mark(1, {"s": 0})
    flow, consumer = case.flow()
    seek = consumer.seek
    # Retention has taken everything below 3: whoever asks for less gets 3.

    def seek_within_the_log(partition: TopicPartition) -> None:
        seek(TopicPartition(partition.topic, partition.partition, max(partition.offset, 3)))

    monkeypatch.setattr(consumer, "seek", seek_within_the_log)
    rounds(flow, 5)
    flow.drain(Deadline(5))
    assert case.store.rows == [3, 4]


def test_poison_becomes_a_dead_letter_and_the_rest_goes_on() -> None:
    case = Case()
    case.append(0, "poison", 1)
    flow, _ = case.flow()
    rounds(flow)
    assert case.store.rows == [0, 1]
    (letter,) = case.broker.records(dead_letter_topic(TOPIC))
    assert letter.value == b"poison"
    assert (letter.headers[REASON], letter.headers[GROUP]) == ("undecodable", NAME)
    assert letter.headers["__connect.errors.offset"] == "1"
    assert case.sample("vla_dead_letters_total", topic=TOPIC, reason="undecodable") == 1


def test_the_largest_buffer_is_written_when_memory_is_short() -> None:
    case = Case(Limits(rows=1000, size_bytes=1000, age_s=1000), total_bytes=30)
    case.append(*range(10))
    flow, _ = case.flow()
    rounds(flow, 8)
    assert case.store.rows[:9] == list(range(9))


def test_a_partition_given_away_and_back_goes_on_where_it_was() -> None:
    case = Case()
    case.append(0, 1, 2)
    first, _ = case.flow()
    rounds(first)
    second, _ = case.flow()
    for _ in range(4):
        first.round()
        second.round()
    first.close(Deadline(1))
    case.append(3)
    for _ in range(4):
        case.now_s += 5
        second.round()
    assert sorted(case.store.rows) == [0, 1, 2, 3]


def test_a_pause_that_the_client_remembers_from_an_earlier_assignment_is_lifted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case()
    case.store.away = True
    case.append(0, 1)
    flow, consumer = case.flow()
    paused: set[tuple[str, int]] = set()
    pause, resume = consumer.pause, consumer.resume

    def remember(partitions: list[TopicPartition]) -> None:
        paused.update((p.topic, p.partition) for p in partitions)
        pause(partitions)

    def lift(partitions: list[TopicPartition]) -> None:
        paused.difference_update((p.topic, p.partition) for p in partitions)
        resume(partitions)

    monkeypatch.setattr(consumer, "pause", remember)
    monkeypatch.setattr(consumer, "resume", lift)
    rounds(flow)
    assert paused == {(TOPIC, 0)}
    consumer.fence()
    flow.round()
    assert consumer.assignment() == []
    case.store.away = False
    case.now_s += 10
    rounds(flow, 5)
    assert (paused, case.store.rows) == (set(), [0, 1])


@pytest.mark.parametrize("failing", [1, 3])
def test_failing_commits_change_nothing(failing: int) -> None:
    case = Case()
    case.broker.failing_commits = failing
    case.append(0, 1, 2, 3)
    flow, _ = case.flow()
    for _ in range(4):
        case.now_s += 5
        rounds(flow)
    assert case.store.rows == [0, 1, 2, 3]
