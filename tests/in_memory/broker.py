"""Topics, their logs, and groups with committed offsets."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import (
    TIMESTAMP_LOG_APPEND_TIME,
    Message,
)

from runtime.errors import Fatal
from runtime.kafka import Record, record_of
from runtime.processor import OnCommit
from runtime.publisher import Delivered
from schemas import headers as h
from schemas.ids import partition_of
from tests.in_memory.consumer import InMemoryConsumer, Place
from tests.in_memory.publisher import InMemoryPublisher


@dataclass
class _Group:
    #: In the order in which they joined.
    members: list[InMemoryConsumer] = field(default_factory=list)
    committed: dict[Place, int] = field(default_factory=dict)
    #: Who is to have a partition once its present owner has let go of it.
    target: dict[Place, InMemoryConsumer] = field(default_factory=dict)


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

    def end(self, place: Place) -> int:
        with self.changed:
            return len(self._logs[place[0]][place[1]])

    def read(self, place: Place, offset: int) -> Message | None:
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
        target: dict[Place, InMemoryConsumer] = {}
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
