"""The loop of a sink: poll -> decode -> buffer -> write with the mark -> commit.

Exactly once is the store's: it takes a batch only while its mark is the one that this process started from,
and moves the mark together with the rows. So the committed offset is only a convenience, buffers may be
dropped at any time, and a process that lost its partition without knowing it writes nothing.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from confluent_kafka import KafkaException, Message, TopicPartition

from runtime.dead_letters import write_dead_letter
from runtime.errors import Poison, Retry, Unavailable
from runtime.kafka import Record, check_consumed, record_of
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.processor import ConsumerPort
from runtime.publisher import PublisherPort
from sinks.marks import Added, Batch, Buffer, Entry, Limits, Partition
from sinks.store import Fenced, Skip, Store
from sinks.store_watch import FIRST_PAUSE_S, StoreWatch

log = logging.getLogger(__name__)

RowT = TypeVar("RowT")

#: Records taken in one round, before due batches are looked at.
_ROUND_RECORDS = 500
_COMMIT_INTERVAL_S = 1.0
#: Share of a shutdown's time that the last writes get; the rest is for the commit and the close.
_DRAIN_SHARE = 0.7
#: A loop that has not come round for longer is stuck.
_STUCK_S = 120.0


_GAP = {"action": "offset_gap"}


class SinkConsumer(ConsumerPort, Protocol):
    """What a sink needs of its consumer besides."""

    def committed(self, partitions: list[TopicPartition], timeout: float = ...) -> list[TopicPartition]: ...
    def seek(self, partition: TopicPartition) -> None: ...


#: A record's entry. Raises Skip for one that becomes no row, Poison for one that never can.
Decode = Callable[[Record], Entry[RowT]]


class Flow(Generic[RowT]):
    """Owns one consumer of a group. `run`, `drain` and `close` belong to one thread."""

    def __init__(
        self,
        *,
        name: str,
        consumer: SinkConsumer,
        topics: Sequence[str],
        decode: Decode[RowT],
        store: Store[RowT],
        limits: Limits,
        total_bytes: int,
        publisher: PublisherPort,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        poll_s: float = 0.1,
    ) -> None:
        self._name = name
        self._consumer = consumer
        self._topics = list(topics)
        self._decode = decode
        self._store = store
        self._limits = limits
        self._total_bytes = total_bytes
        self._publisher = publisher
        self._metrics = metrics
        self._clock = clock
        self._poll_s = poll_s
        #: None: assigned, and its mark is not known yet; nothing that it brings is taken.
        self._buffers: dict[Partition, Buffer[RowT] | None] = {}
        #: What the client was told of a partition in this assignment; it remembers a pause from an earlier one.
        self._paused: dict[Partition, bool] = {}
        self._committed: dict[Partition, int] = {}
        #: Where offsets were missing the last time.
        self._gaps: dict[Partition, int] = {}
        self._stopping = threading.Event()
        self._next_commit = 0.0
        self._last_round = clock()
        self._joined = threading.Event()
        self._watch = StoreWatch(name, store.server, metrics, clock)

    # --- what others may ask

    def waiting(self) -> list[str]:
        """What this sink waits for before it is ready."""
        reasons = [] if self._joined.is_set() else ["its first assignment from the consumer group"]
        return reasons + ([] if self._watch.seen else [f"{self._store.server} to answer for the first time"])

    def alive(self) -> bool:
        return self._clock() - self._last_round < _STUCK_S

    # --- the loop

    def idle(self) -> None:
        """Instead of a round, as long as something else is waited for."""
        self._last_round = self._clock()

    def run(self, stopping: threading.Event) -> None:
        """Sink records until `stopping`. Raises Fatal where the process cannot go on."""
        self._stopping = stopping
        self._consumer.subscribe(
            self._topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        while not stopping.is_set():
            self.round()

    def round(self) -> None:
        """Once around; `run` is nothing else."""
        self._last_round = self._clock()
        self._reach_store()
        self._open_partitions()
        self._apply_pauses()
        self._read()
        self._write_due()
        self._commit_when_due()

    def drain(self, deadline: Deadline) -> None:
        """Write what is buffered, as far as the time goes, and commit. What is left is read again."""
        last = Deadline(deadline.remaining_s * _DRAIN_SHARE)
        nap = threading.Event()
        while any(self._open_buffers()) and not last.passed:
            if not self._write_due(everything=True):
                nap.wait(0.1)
        left = sum(len(buffer) for buffer in self._open_buffers())
        if left:
            log.warning("%d records are left for the next process", left, extra={"action": "drain"})
        self._commit(list(self._buffers), asynchronous=False)

    def close(self, deadline: Deadline) -> None:
        self._consumer.close()

    # --- reading

    def _read(self) -> None:
        for number in range(_ROUND_RECORDS):
            message = self._consumer.poll(0 if number else self._poll_s)
            # What was polled is taken: a record that is put aside here would never come again.
            if message is None or not self._take(message):
                return

    def _take(self, message: Message) -> bool:
        """False where reading must stop for now."""
        if not check_consumed(message):
            return True
        record = record_of(message)
        partition = Partition(record.topic, record.partition)
        buffer = self._buffers.get(partition)
        # Without a buffer the position is still to be sought: the record comes again.
        if buffer is None or record.offset < buffer.position:
            return True
        if record.offset > buffer.position and not self._is_known_gap(partition, buffer.position):
            log.warning("reading %s again from %d: offsets are missing", partition, buffer.position, extra=_GAP)
            self._metrics.offset_gaps.inc()
            self._buffers[partition] = None
            return True
        self._metrics.records_consumed.labels(record.topic).inc()
        dataset = self._store.dataset(record.topic)
        try:
            added = buffer.add(self._decode(record), self._clock())
        except Skip as skip:
            buffer.skip(record.offset)
            self._metrics.sink_skipped.labels(self._name, dataset, str(skip)).inc()
        except Poison as poison:
            if not self._bury(record, poison):
                return False
            buffer.skip(record.offset)
        else:
            if added is Added.REPEAT:
                self._metrics.sink_skipped.labels(self._name, dataset, "repeat").inc()
        return not buffer.full and not self._over_budget()

    def _is_known_gap(self, partition: Partition, position: int) -> bool:
        """Whether the log itself has nothing there (retention has taken it): it was read a second time in vain.

        Our topics have no gaps, so a first one means that a record was lost on its way to us.
        """
        known = self._gaps.get(partition) == position
        self._gaps[partition] = position
        return known

    def _bury(self, record: Record, poison: Poison) -> bool:
        """Dead letter, tried until the broker has it; False if the process is told to stop before."""
        while True:
            try:
                write_dead_letter(
                    self._publisher,
                    self._metrics,
                    record,
                    reason=poison.reason,
                    stage="decode",
                    group=self._name,
                    error=poison,
                )
            except (Retry, Unavailable) as error:
                log.warning("writing a dead letter again: %s", error, extra={"action": "retry"})
                if self._stopping.wait(FIRST_PAUSE_S):
                    return False
            else:
                place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
                log.warning(
                    "dead letter: %s", poison, extra={"action": "dead_letter", "reason": poison.reason, **place}
                )
                return True

    # --- writing

    def _write_due(self, everything: bool = False) -> bool:
        """Write the batches whose time has come; False while the store is away."""
        if self._watch.pausing:
            return False
        largest = max(self._open_buffers(), key=lambda buffer: buffer.size_bytes, default=None)
        for partition, buffer in list(self._buffers.items()):
            while buffer is not None and (
                everything or buffer.due(self._clock()) or (buffer is largest and self._over_budget())
            ):
                batch = buffer.batch()
                if batch is None:
                    break
                try:
                    self._write(partition, buffer, batch)
                except Unavailable as error:
                    self._watch.away(error)
                    return False
                except Fenced as error:
                    log.warning("reading %s again from its mark: %s", partition, error, extra={"action": "fenced"})
                    self._buffers[partition] = None
                    break
        return True

    def _write(self, partition: Partition, buffer: Buffer[RowT], batch: Batch[RowT]) -> None:
        started = time.perf_counter()
        self._store.write(partition, batch)
        buffer.written(batch, self._clock())
        self._watch.answers()
        self._metrics.sink_flush_duration.labels(self._name).observe(time.perf_counter() - started)
        self._metrics.sink_rows.labels(self._name, self._store.dataset(partition.topic)).inc(len(batch.entries))
        self._metrics.sink_last_commit.labels(self._name).set(batch.entries[-1].timestamp_ms / 1000)

    def _reach_store(self) -> None:
        if self._watch.seen or self._watch.pausing:
            return
        try:
            self._store.ping()
        except Unavailable as error:
            self._watch.away(error)
        else:
            self._watch.answers()

    # --- positions and pauses

    def _open_partitions(self) -> None:
        """Start partitions at their mark or at the committed offset, whichever is later."""
        for partition, buffer in list(self._buffers.items()):
            if buffer is not None or self._watch.pausing:
                continue
            place = TopicPartition(partition.topic, partition.number)
            try:
                mark = self._store.open(partition)
                stored = self._consumer.committed([place], timeout=5.0)[0].offset
                position = max(mark.next_offset, stored, 0)
                self._consumer.seek(TopicPartition(partition.topic, partition.number, position))
            except Unavailable as error:
                self._watch.away(error)
            except KafkaException as error:
                # Right after an assignment a partition cannot be sought yet; the next round tries again.
                log.debug("%s cannot be positioned yet: %s", partition, error, extra={"action": "open"})
            else:
                self._watch.answers()
                self._buffers[partition] = Buffer(mark, position, self._limits)
                self._committed[partition] = stored
                log.info("sinking %s from offset %d", partition, position, extra={"action": "open"})

    def _apply_pauses(self) -> None:
        over = self._over_budget()
        for partition, buffer in self._buffers.items():
            pause = over or buffer is None or buffer.full
            if self._paused.get(partition) != pause:
                apply = self._consumer.pause if pause else self._consumer.resume
                apply([TopicPartition(partition.topic, partition.number)])
                self._paused[partition] = pause

    def _over_budget(self) -> bool:
        return sum(buffer.size_bytes for buffer in self._open_buffers()) >= self._total_bytes

    def _open_buffers(self) -> list[Buffer[RowT]]:
        return [buffer for buffer in self._buffers.values() if buffer is not None and len(buffer)]

    # --- commits

    def _commit_when_due(self) -> None:
        now = self._clock()
        if now >= self._next_commit:
            self._next_commit = now + _COMMIT_INTERVAL_S
            self._observe_lag()
            self._commit(list(self._buffers), asynchronous=True)

    def _commit(self, partitions: Sequence[Partition], *, asynchronous: bool) -> None:
        offsets = {}
        for partition in partitions:
            buffer = self._buffers.get(partition)
            if buffer is not None and buffer.committable > max(self._committed.get(partition, -1), 0):
                offsets[partition] = buffer.committable
        if not offsets:
            return
        positions = [TopicPartition(p.topic, p.number, offset) for p, offset in offsets.items()]
        try:
            if asynchronous:
                self._consumer.commit(offsets=positions, asynchronous=True)
            else:
                self._consumer.commit(offsets=positions, asynchronous=False)
        except KafkaException as error:
            # The marks say where to go on; the committed offset only spares a seek.
            log.warning("commit failed: %s", error.args[0].str(), extra={"action": "commit"})
        else:
            self._committed.update(offsets)

    def _observe_lag(self) -> None:
        for partition, buffer in self._buffers.items():
            _, end = self._consumer.get_watermark_offsets(
                TopicPartition(partition.topic, partition.number), cached=True
            )
            if buffer is not None and end >= 0:
                lag = max(end - buffer.committable, 0)
                self._metrics.consumer_lag.labels(partition.topic, str(partition.number)).set(lag)

    # --- rebalances, called from poll and close

    def _on_assign(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("assigned").inc()
        for place in partitions:
            partition = Partition(place.topic, place.partition)
            self._buffers[partition] = None
            self._paused.pop(partition, None)
        self._joined.set()

    def _on_revoke(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("revoked").inc()
        leaving = [Partition(place.topic, place.partition) for place in partitions]
        self._commit(leaving, asynchronous=False)
        self._forget(leaving)

    def _on_lost(self, consumer: Any, partitions: list[TopicPartition]) -> None:
        self._metrics.rebalances.labels("lost").inc()
        self._forget([Partition(place.topic, place.partition) for place in partitions])

    def _forget(self, partitions: list[Partition]) -> None:
        """Drop the buffers: whoever has the partitions now reads from the mark."""
        for partition in partitions:
            self._buffers.pop(partition, None)
            self._committed.pop(partition, None)
            self._paused.pop(partition, None)
            self._metrics.consumer_lag.labels(partition.topic, str(partition.number)).set(0)
