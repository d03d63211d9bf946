"""Members of groups: positions, pauses, rebalances and commits."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, overload

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from runtime.processor import OnCommit, OnRebalance

if TYPE_CHECKING:
    from tests.in_memory.broker import InMemoryBroker

Place = tuple[str, int]


def no_callback(consumer: Any, partitions: list[TopicPartition]) -> None:
    """A subscriber that does not care."""


class InMemoryConsumer:
    """The subset of confluent_kafka.Consumer that the pipeline uses. One thread at a time, like the real one."""

    def __init__(self, broker: InMemoryBroker, group: str, on_commit: OnCommit | None) -> None:
        self.group = group
        self.topics: list[str] = []
        self._broker = broker
        self._on_commit = on_commit
        self._on_assign: OnRebalance = no_callback
        self._on_revoke: OnRebalance = no_callback
        self._on_lost: OnRebalance = no_callback
        #: Owned partition -> offset of the next record.
        self._position: dict[Place, int] = {}
        self._paused: set[Place] = set()
        self._reports: deque[tuple[KafkaError | None, list[TopicPartition]]] = deque()
        #: Whether `on_assign` was called since joining; the real one is called even for an empty assignment.
        self._announced = False
        self._manual = False
        self._fenced = False
        self._closed = False

    def subscribe(
        self,
        topics: list[str],
        on_assign: OnRebalance = no_callback,
        on_revoke: OnRebalance = no_callback,
        on_lost: OnRebalance = no_callback,
    ) -> None:
        with self._broker.changed:
            self.topics = list(topics)
            self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost
            self._broker.join(self)

    def assign(self, partitions: list[TopicPartition]) -> None:
        with self._broker.changed:
            self._manual = True
            self._position = {at(p): self._resolve(at(p), p.offset) for p in partitions}
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
            elif not self._manual and (self._fenced or any(at(offset) not in self._position for offset in offsets)):
                code = KafkaError.ILLEGAL_GENERATION
            if code is None:
                self._broker.group(self.group).committed.update({at(offset): offset.offset for offset in offsets})
                self._broker.changed.notify_all()
            error = None if code is None else KafkaError(code)
            if asynchronous:
                self._reports.append((error, offsets))
                return None
            if error is not None:
                raise KafkaException(error)
            return offsets

    @property
    def owned(self) -> set[Place]:
        return set(self._position)

    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(*place) for place in self._position]

    def position(self, partitions: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(*at(p), self._position.get(at(p), OFFSET_INVALID)) for p in partitions]

    def committed(self, partitions: list[TopicPartition], timeout: float = -1) -> list[TopicPartition]:
        found = {at(p): self._broker.committed(self.group, *at(p)) for p in partitions}
        return [TopicPartition(*place, OFFSET_INVALID if at is None else at) for place, at in found.items()]

    def seek(self, partition: TopicPartition) -> None:
        self._require([partition])
        self._position[at(partition)] = self._resolve(at(partition), partition.offset)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self._require(partitions)
        self._paused |= {at(p) for p in partitions}

    def resume(self, partitions: list[TopicPartition]) -> None:
        self._require(partitions)
        self._paused -= {at(p) for p in partitions}

    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = -1, cached: bool = False
    ) -> tuple[int, int]:
        return 0, self._broker.end(at(partition))

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

    def _resolve(self, place: Place, offset: int) -> int:
        if offset == OFFSET_END:
            return self._broker.end(place)
        if offset >= 0:
            return offset
        stored = None if offset == OFFSET_BEGINNING else self._broker.committed(self.group, *place)
        return stored or 0

    def _moves(self) -> tuple[list[Place], list[Place]] | None:
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

    def _drop(self, places: Iterable[Place]) -> None:
        for place in places:
            self._position.pop(place, None)
            self._paused.discard(place)
        self._broker.changed.notify_all()

    def _require(self, partitions: list[TopicPartition]) -> None:
        if any(at(p) not in self._position for p in partitions):
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))


def at(partition: TopicPartition) -> Place:
    return partition.topic, partition.partition
