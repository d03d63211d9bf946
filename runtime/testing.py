"""A Kafka in memory, offsets included: for tests of stages, never for running them.

It keeps to the one contract in tests/contract/test_broker.py, which is run against a real broker as well:
placement by murmur2, contiguous offsets, groups with committed offsets, and the incremental rebalance of
`cooperative-sticky`, whose callbacks come out of `poll`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, overload

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    TIMESTAMP_LOG_APPEND_TIME,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from runtime.errors import Fatal
from runtime.kafka import Record, record_of
from runtime.processor import OnCommit, OnRebalance
from runtime.publisher import Delivered, OnDelivery
from schemas import headers as h
from schemas.ids import partition_of

_Place = tuple[str, int]


def _no_callback(consumer: Any, partitions: list[TopicPartition]) -> None:
    """A subscriber that does not care."""


@dataclass
class _Group:
    #: In the order in which they joined.
    members: list[InMemoryConsumer] = field(default_factory=list)
    committed: dict[_Place, int] = field(default_factory=dict)
    #: Who is to have a partition once its present owner has let go of it.
    target: dict[_Place, InMemoryConsumer] = field(default_factory=dict)


class InMemoryBroker:
    """Topics of one process. Thread-safe; consumers that wait in `poll` wake up for a new record."""

    def __init__(self, topics: Mapping[str, int] | None = None, now_s: Callable[[], float] = time.time) -> None:
        self._now_s = now_s
        #: Held for every change; notified after it.
        self.changed = threading.Condition(threading.RLock())
        self._logs: dict[str, list[list[Message]]] = {}
        self._groups: dict[str, _Group] = {}
        self._round_robin = itertools.count()
        #: Commits that still fail, for tests of retries.
        self.failing_commits = 0
        for name, partitions in (topics or {}).items():
            self.create_topic(name, partitions)

    def create_topic(self, name: str, partitions: int) -> None:
        with self.changed:
            self._logs[name] = [[] for _ in range(partitions)]
            for group in self._groups.values():
                self._rebalance(group)

    def publisher(self) -> InMemoryPublisher:
        return InMemoryPublisher(self)

    def consumer(self, group: str, on_commit: OnCommit | None = None) -> InMemoryConsumer:
        """A consumer that starts at the beginning of partitions for which its group has no offset."""
        return InMemoryConsumer(self, group, on_commit)

    # --- what tests look at

    def records(self, topic: str) -> list[Record]:
        """Every record of a topic, partition by partition."""
        with self.changed:
            return [record_of(message) for log in self._logs[topic] for message in log]

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 10.0) -> bool:
        """Block until a condition holds, asked after each change of the broker and often; false after `timeout_s`."""
        end = time.monotonic() + timeout_s
        with self.changed:
            while not condition():
                if time.monotonic() >= end:
                    return False
                self.changed.wait(0.01)
        return True

    def members(self, group: str) -> int:
        with self.changed:
            return len(self.group(group).members)

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        with self.changed:
            return self.group(group).committed.get((topic, partition))

    def evict(self, consumer: InMemoryConsumer) -> None:
        """Throw a member out, as the broker does after its session timed out: its partitions are lost, not revoked."""
        with self.changed:
            consumer.fence()
            self.leave(consumer)

    # --- what clients call

    def append(
        self, topic: str, value: bytes | None, key: bytes | None, headers: h.RawHeaders, partition: int | None
    ) -> Delivered:
        """Raises Fatal for a topic or partition that does not exist."""
        with self.changed:
            if topic not in self._logs or (partition is not None and partition >= len(self._logs[topic])):
                raise Fatal(f"unknown topic or partition {topic}/{partition}: run `vlastream topics apply`")
            logs = self._logs[topic]
            if partition is None:
                partition = partition_of(key, len(logs)) if key is not None else next(self._round_robin) % len(logs)
            offset, timestamp_ms = len(logs[partition]), int(self._now_s() * 1000)
            logs[partition].append(
                Message(
                    topic=topic,
                    partition=partition,
                    offset=offset,
                    key=key,
                    value=value,
                    headers=list(headers),
                    timestamp=(TIMESTAMP_LOG_APPEND_TIME, timestamp_ms),
                )
            )
            self.changed.notify_all()
            return Delivered(topic, partition, offset, timestamp_ms)

    def partitions(self, topic: str) -> int:
        with self.changed:
            return len(self._logs.get(topic, []))

    def end(self, place: _Place) -> int:
        with self.changed:
            return len(self._logs[place[0]][place[1]])

    def read(self, place: _Place, offset: int) -> Message | None:
        with self.changed:
            log = self._logs[place[0]][place[1]]
            return log[offset] if offset < len(log) else None

    def group(self, name: str) -> _Group:
        return self._groups.setdefault(name, _Group())

    def join(self, consumer: InMemoryConsumer) -> None:
        group = self.group(consumer.group)
        group.members.append(consumer)
        self._rebalance(group)

    def leave(self, consumer: InMemoryConsumer) -> None:
        group = self.group(consumer.group)
        if consumer in group.members:
            group.members.remove(consumer)
            self._rebalance(group)

    def _rebalance(self, group: _Group) -> None:
        """Sticky: nobody loses a partition that the balance lets it keep."""
        places = [
            (topic, number)
            for topic in sorted({topic for member in group.members for topic in member.topics})
            for number in range(self.partitions(topic))
        ]
        quota = -(-len(places) // max(len(group.members), 1))
        load = dict.fromkeys(group.members, 0)
        target: dict[_Place, InMemoryConsumer] = {}
        for place in places:
            keeper = group.target.get(place)
            if keeper in load and place[0] in keeper.topics and load[keeper] < quota:
                target[place] = keeper
                load[keeper] += 1
        for place in places:
            takers = [member for member in group.members if place[0] in member.topics]
            if place not in target and takers:
                target[place] = taker = min(takers, key=lambda member: load[member])
                load[taker] += 1
        group.target = target
        self.changed.notify_all()


class InMemoryConsumer:
    """The subset of confluent_kafka.Consumer that the pipeline uses. One thread at a time, like the real one."""

    def __init__(self, broker: InMemoryBroker, group: str, on_commit: OnCommit | None) -> None:
        self.group = group
        self.topics: list[str] = []
        self._broker = broker
        self._on_commit = on_commit
        self._on_assign: OnRebalance = _no_callback
        self._on_revoke: OnRebalance = _no_callback
        self._on_lost: OnRebalance = _no_callback
        #: Owned partition -> offset of the next record.
        self._position: dict[_Place, int] = {}
        self._paused: set[_Place] = set()
        self._reports: deque[tuple[KafkaError | None, list[TopicPartition]]] = deque()
        #: Whether `on_assign` was called since joining; the real one is called even for an empty assignment.
        self._announced = False
        self._manual = False
        self._fenced = False
        self._closed = False

    def subscribe(
        self,
        topics: list[str],
        on_assign: OnRebalance = _no_callback,
        on_revoke: OnRebalance = _no_callback,
        on_lost: OnRebalance = _no_callback,
    ) -> None:
        with self._broker.changed:
            self.topics = list(topics)
            self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
            self._broker.join(self)

    def assign(self, partitions: list[TopicPartition]) -> None:
        with self._broker.changed:
            self._manual = True
            self._position = {_at(p): self._resolve(_at(p), p.offset) for p in partitions}
            self._paused &= set(self._position)

    def unassign(self) -> None:
        self.assign([])

    def poll(self, timeout: float = -1) -> Message | None:
        end = None if timeout < 0 else time.monotonic() + timeout
        while True:
            self._call_back()
            with self._broker.changed:
                message = self._next()
                remaining = None if end is None else end - time.monotonic()
                if message is not None or (remaining is not None and remaining <= 0):
                    return message
                if not self._reports and not self._moves():
                    self._broker.changed.wait(remaining)

    @overload
    def commit(self, *, offsets: list[TopicPartition], asynchronous: Literal[True] = ...) -> None: ...
    @overload
    def commit(self, *, offsets: list[TopicPartition], asynchronous: Literal[False]) -> list[TopicPartition]: ...
    def commit(self, *, offsets: list[TopicPartition], asynchronous: bool = True) -> list[TopicPartition] | None:
        """Raises KafkaException, or reports through `on_commit`, where this member does not own what it commits."""
        with self._broker.changed:
            code = None
            if self._broker.failing_commits > 0:
                self._broker.failing_commits -= 1
                code = KafkaError.REQUEST_TIMED_OUT
            elif not self._manual and (self._fenced or any(_at(offset) not in self._position for offset in offsets)):
                code = KafkaError.ILLEGAL_GENERATION
            if code is None:
                self._broker.group(self.group).committed.update({_at(offset): offset.offset for offset in offsets})
                self._broker.changed.notify_all()
            error = None if code is None else KafkaError(code)
            if asynchronous:
                self._reports.append((error, offsets))
                return None
            if error is not None:
                raise KafkaException(error)
            return offsets

    @property
    def owned(self) -> set[_Place]:
        return set(self._position)

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(*place) for place in self._position]

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(*_at(p), self._position.get(_at(p), OFFSET_INVALID)) for p in partitions]

    def committed(self, partitions: list[TopicPartition], timeout: float = -1) -> list[TopicPartition]:
        found = {_at(p): self._broker.committed(self.group, *_at(p)) for p in partitions}
        return [TopicPartition(*place, OFFSET_INVALID if at is None else at) for place, at in found.items()]

    def seek(self, partition: TopicPartition) -> None:
        self._require([partition])
        self._position[_at(partition)] = self._resolve(_at(partition), partition.offset)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._require(partitions)
        self._paused |= {_at(p) for p in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._require(partitions)
        self._paused -= {_at(p) for p in partitions}

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        return 0, self._broker.end(_at(partition))

    def list_topics(self, topic: str, timeout: float = -1) -> Any:
        count = self._broker.partitions(topic)
        error = None if count else KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART)
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=dict.fromkeys(range(count)), error=error)})

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._position and not self._manual and not self._fenced:
            self._on_revoke(self, self.assignment())
        with self._broker.changed:
            self._position.clear()
            self._broker.leave(self)

    def fence(self) -> None:
        """From now on commits fail; the next `poll` reports the partitions as lost and joins again."""
        self._fenced = True

    # --- inside

    def _next(self) -> Message | None:
        for place in list(self._position):
            if place in self._paused:
                continue
            message = self._broker.read(place, self._position[place])
            if message is not None:
                # To the back, so that every partition gets its turn.
                self._position[place] = self._position.pop(place) + 1
                return message
        return None

    def _resolve(self, place: _Place, offset: int) -> int:
        if offset == OFFSET_END:
            return self._broker.end(place)
        if offset >= 0:
            return offset
        stored = None if offset == OFFSET_BEGINNING else self._broker.committed(self.group, *place)
        return stored or 0

    def _moves(self) -> tuple[list[_Place], list[_Place]] | None:
        """What the group wants this member to give up, and what it may take now; None if nothing."""
        if self._manual or self._closed or not self.topics:
            return None
        if self._fenced:
            return list(self._position), []
        group = self._broker.group(self.group)
        give = [place for place in self._position if group.target.get(place) is not self]
        others = [member for member in group.members if member is not self]
        take = [
            place
            for place, owner in group.target.items()
            if owner is self and place not in self._position and not any(place in o.owned for o in others)
        ]
        return (give, take) if give or take or not self._announced else None

    def _call_back(self) -> None:
        """Callbacks run without the broker's lock, because they may wait for other clients."""
        while self._reports:
            error, offsets = self._reports.popleft()
            if self._on_commit is not None:
                self._on_commit(error, offsets)
        with self._broker.changed:
            moves = self._moves()
        if moves is None:
            return
        give, take = moves
        if give:
            (self._on_lost if self._fenced else self._on_revoke)(self, [TopicPartition(*place) for place in give])
            with self._broker.changed:
                self._drop(give)
        if self._fenced:
            with self._broker.changed:
                self._fenced = self._announced = False
                self._broker.join(self)
        elif take or not self._announced:
            self._announced = True
            self._on_assign(self, [TopicPartition(*place) for place in take])
            with self._broker.changed:
                self._position.update({place: self._resolve(place, OFFSET_INVALID) for place in take})

    def _drop(self, places: Iterable[_Place]) -> None:
        for place in places:
            self._position.pop(place, None)
            self._paused.discard(place)
        self._broker.changed.notify_all()

    def _require(self, partitions: list[TopicPartition]) -> None:
        if any(_at(p) not in self._position for p in partitions):
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))


class InMemoryPublisher:
    """Satisfies runtime.publisher.PublisherPort. Acknowledges at once unless `hold` was called."""

    def __init__(self, broker: InMemoryBroker) -> None:
        self._broker = broker
        self._lock = threading.Lock()
        self._holding: Callable[[str], bool] = lambda topic: False
        self._held: list[tuple[Delivered, OnDelivery | None]] = []
        self._failures: dict[str, list[Exception]] = {}

    def hold(self, topic: str | None = None) -> None:
        """From now on records (of one topic) are in the log but not acknowledged."""
        self._holding = lambda name: topic is None or name == topic

    def release(self) -> None:
        """Acknowledge everything that is held, and from now on at once."""
        with self._lock:
            held, self._held = self._held, []
            self._holding = lambda topic: False
        for where, on_delivery in held:
            if on_delivery is not None:
                on_delivery(where, None)

    @property
    def held(self) -> int:
        return len(self._held)

    def fail_next(self, topic: str, *errors: Exception) -> None:
        """The next records of a topic are not taken, each with one of these errors reported."""
        self._failures.setdefault(topic, []).extend(errors)

    def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> None:
        report = on_delivery or _ignore
        if self._failures.get(topic):
            report(None, self._failures[topic].pop(0))
            return
        where = self._broker.append(topic, value, key, headers or [], partition)
        if self._holding(topic):
            with self._lock:
                self._held.append((where, on_delivery))
            return
        report(where, None)

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
    ) -> Delivered:
        if self._failures.get(topic):
            raise self._failures[topic].pop(0)
        return self._broker.append(topic, value, key, headers or [], partition)

    def flush(self, timeout_s: float) -> int:
        return self.held


def _at(partition: TopicPartition) -> _Place:
    return partition.topic, partition.partition


def _ignore(where: Delivered | None, error: Exception | None) -> None:
    """Nobody waits for this record."""
