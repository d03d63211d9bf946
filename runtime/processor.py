"""The at-least-once loop: poll -> submit -> outputs acknowledged -> done -> commit of the low-water mark.

A record's offset is committed only after its handler called `done`, and never past an older record of the
partition that is not done. So a process may end at any instruction: what it had not finished is read again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, overload

from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition

from runtime.errors import Fatal
from runtime.kafka import Record, check_consumed, record_of
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.offsets import LowWater

log = logging.getLogger(__name__)

OnRebalance = Callable[[Any, list[TopicPartition]], None]
#: Called from `poll` with what came of an asynchronous commit.
OnCommit = Callable[[KafkaError | None, list[TopicPartition]], None]
#: Share of the time left that a shutdown gives to records in flight; the rest is for commit and close.
_DRAIN_SHARE = 0.7
_POLL_S = 0.1


class ConsumerPort(Protocol):
    """What the processor needs of confluent_kafka.Consumer; tests/in_memory has it in memory."""

    def subscribe(
        self, topics: list[str], on_assign: OnRebalance = ..., on_revoke: OnRebalance = ..., on_lost: OnRebalance = ...
    ) -> None: ...
    def poll(self, timeout: float = ...) -> Message | None: ...
    @overload
    def commit(self, *, offsets: list[TopicPartition], asynchronous: Literal[True] = ...) -> None: ...
    @overload
    def commit(self, *, offsets: list[TopicPartition], asynchronous: Literal[False]) -> list[TopicPartition]: ...
    def assignment(self) -> list[TopicPartition]: ...
    def pause(self, partitions: list[TopicPartition]) -> None: ...
    def resume(self, partitions: list[TopicPartition]) -> None: ...
    def get_watermark_offsets(
        self, partition: TopicPartition, timeout: float = ..., cached: bool = ...
    ) -> tuple[int, int]: ...
    def close(self) -> None: ...


class Handler(Protocol):
    """One stage's work on a record."""

    def submit(self, record: Record, done: Callable[[], None]) -> None:
        """Take a record; call `done` from any thread, once every output of it is acknowledged by the broker.

        Returns without waiting for the work. Errors of a record are the handler's to decide (refuse it, dead
        letter it, try again); an exception that leaves `submit` ends the process.
        """
        ...


_Place = tuple[str, int]


def _place(partition: TopicPartition) -> _Place:
    return partition.topic, partition.partition


class _Partition:
    """One partition for as long as one assignment of it lasts."""

    def __init__(self) -> None:
        self.water = LowWater()
        self.assigned = True


class Processor:
    """Owns one consumer of a group. `run` and `close` belong to one thread; `done` may come from any.

    At most `max_in_flight` records are submitted and not done: beyond it every partition is paused, and polling
    goes on so that the member stays in its group.
    """

    def __init__(
        self,
        *,
        build: Callable[[OnCommit], ConsumerPort],
        topics: Sequence[str],
        handler: Handler,
        metrics: Metrics,
        max_in_flight: int,
        commit_interval_s: float = 0.5,
        revoke_timeout_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._consumer = build(self._on_commit)
        self._topics = list(topics)
        self._handler = handler
        self._metrics = metrics
        self._max_in_flight = max_in_flight
        self._commit_interval_s = commit_interval_s
        self._revoke_timeout_s = revoke_timeout_s
        self._clock = clock
        self._partitions: dict[_Place, _Partition] = {}
        #: Guards the low-water marks and the counter; notified whenever a record is done.
        self._progress = threading.Condition()
        self._in_flight = 0
        self._paused = False
        self._assignment_changed = False
        self._intake = True
        self._next_commit = 0.0
        self._last_poll = clock()
        self._joined = threading.Event()

    # --- what others may ask

    @property
    def joined(self) -> bool:
        """Whether the group has given this member its first assignment."""
        return self._joined.is_set()

    @property
    def in_flight(self) -> int:
        """Records that were submitted and are not done, of lost partitions too."""
        return self._in_flight

    @property
    def since_poll_s(self) -> float:
        """Seconds since the loop last came round: large values mean that it is stuck."""
        return self._clock() - self._last_poll

    # --- the loop

    def run(self, stopping: threading.Event) -> None:
        """Process until `stopping`. Raises Fatal where the process cannot go on."""
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        try:
            while not stopping.is_set():
                self._apply_backpressure()
                self._poll(_POLL_S)
                self._commit_when_due()
        except BaseException:
            # The record that failed never becomes done: there is nothing to wait for.
            self._intake = False
            self._revoke_timeout_s = 0.0
            raise

    def close(self, deadline: Deadline) -> None:
        """Stop intake, wait for records in flight, commit what is done, leave the group."""
        drain = Deadline(deadline.remaining_s * _DRAIN_SHARE if self._intake else 0.0)
        self._intake = False
        try:
            self._assignment_changed = True
            while self._unfinished(self._partitions) and not drain.passed:
                self._apply_backpressure()
                self._poll(0.02)
            if left := self._unfinished(self._partitions):
                log.warning("%d records are left for the next process", left, extra={"action": "drain"})
            self._commit_now(self._committable(self._partitions))
        finally:
            self._revoke_timeout_s = 0.0
            self._consumer.close()

    def _poll(self, timeout_s: float) -> None:
        message = self._consumer.poll(timeout_s)
        self._last_poll = self._clock()
        if message is None or not check_consumed(message):
            return
        record = record_of(message)
        partition = self._partitions.get((record.topic, record.partition))
        # After a stop a record is left unread: its offset is not started, so it is not committed either.
        if partition is None or not self._intake:
            return
        with self._progress:
            if not partition.water.start(record.offset):
                return
            self._in_flight += 1
        self._metrics.records_consumed.labels(record.topic).inc()
        try:
            self._handler.submit(record, self._done(partition, record.offset))
        except Fatal:
            raise
        except Exception as error:
            raise Fatal(f"the handler failed on {record.source}: {error!r}") from error

    def _done(self, partition: _Partition, offset: int) -> Callable[[], None]:
        pending = True

        def done() -> None:
            nonlocal pending
            with self._progress:
                if not pending:
                    return
                pending = False
                self._in_flight -= 1
                # An earlier assignment's record: whoever has the partition now does it again.
                if partition.assigned:
                    partition.water.done(offset)
                self._progress.notify_all()

        return done

    def _apply_backpressure(self) -> None:
        full = self._in_flight >= self._max_in_flight
        pause = not self._intake or full or (self._paused and self._in_flight > self._max_in_flight // 2)
        if pause == self._paused and not self._assignment_changed:
            return
        # A partition keeps its state across a revocation, so the whole assignment is told, not what is new in it.
        assignment = self._consumer.assignment()
        if assignment:
            (self._consumer.pause if pause else self._consumer.resume)(assignment)
        self._paused, self._assignment_changed = pause, False

    def _unfinished(self, places: Iterable[_Place]) -> int:
        with self._progress:
            return sum(self._partitions[place].water.in_flight for place in places)

    # --- commits

    def _committable(self, places: Iterable[_Place]) -> list[TopicPartition]:
        with self._progress:
            marks = [(place, self._partitions[place].water.committable()) for place in places]
        return [TopicPartition(topic, number, mark) for (topic, number), mark in marks if mark is not None]

    def _commit_when_due(self) -> None:
        now = self._clock()
        if now < self._next_commit:
            return
        self._next_commit = now + self._commit_interval_s
        self._observe_lag()
        offsets = self._committable(self._partitions)
        if not offsets:
            return
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            self._commit_failed(error.args[0])

    def _commit_now(self, offsets: list[TopicPartition]) -> None:
        if not offsets:
            return
        try:
            self._on_commit(None, self._consumer.commit(offsets=offsets, asynchronous=False))
        except KafkaException as error:
            self._commit_failed(error.args[0])

    def _on_commit(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        failed = error or next((offset.error for offset in offsets if offset.error), None)
        if failed:
            self._commit_failed(failed)
        for offset in offsets:
            partition = self._partitions.get(_place(offset))
            if partition is not None and not error and not offset.error:
                with self._progress:
                    partition.water.committed(offset.offset)

    def _commit_failed(self, error: KafkaError) -> None:
        # The mark stays committable, so the next interval tries again; after a rebalance the record is read again.
        self._metrics.retries.labels("commit", error.name()).inc()
        log.warning("commit failed: %s", error.str(), extra={"action": "commit"})

    def _observe_lag(self) -> None:
        for (topic, number), partition in self._partitions.items():
            low = partition.water.low
            _, end = self._consumer.get_watermark_offsets(TopicPartition(topic, number), cached=True)
            if low is not None and end >= 0:
                self._metrics.consumer_lag.labels(topic, str(number)).set(max(end - low, 0))

    # --- rebalances, called from poll and close

    def _on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        for partition in partitions:
            self._partitions[_place(partition)] = _Partition()
        self._assignment_changed = True
        self._joined.set()

    def _on_revoke(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        """Nothing is submitted meanwhile, because polling waits for this; handlers finish on their own threads."""
        self._metrics.rebalances.labels("revoked").inc()
        leaving = [place for place in map(_place, partitions) if place in self._partitions]
        with self._progress:
            self._progress.wait_for(lambda: not self._unfinished(leaving), timeout=self._revoke_timeout_s)
        self._commit_now(self._committable(leaving))
        self._forget(partitions)

    def _on_lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("lost").inc()
        log.warning("lost %d partitions: the group took them away", len(partitions), extra={"action": "lost"})
        self._forget(partitions)

    def _forget(self, partitions: list[TopicPartition]) -> None:
        with self._progress:
            for place in map(_place, partitions):
                known = self._partitions.pop(place, None)
                if known is not None:
                    known.assigned = False
                    self._metrics.consumer_lag.labels(place[0], str(place[1])).set(0)
        self._assignment_changed = True
