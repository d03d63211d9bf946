"""Rows from the log again: the Postgres sink's own decoder and store, from the marks to the end, without its group."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from runtime.consent import ConsentList
from runtime.database import Database
from runtime.errors import Poison, Unavailable
from runtime.fleets.registry import with_registered_fleets
from runtime.kafka import build_consumer, check_consumed, partition_count, record_of
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from runtime.view import CompactedView
from schemas.topics import CONSENT
from sinks.marks import Buffer, Limits, Partition
from sinks.postgres import AnyRow, PostgresStore, decoder_of, topics_of
from sinks.store import Skip

#: Called with a partition, the first offset that is wanted and the first that the log still has.
FillGap = Callable[[Partition, int, int], None]

_CLIENT_ID = "vlastream-rebuild"
_SILENCE_S = 30.0
_VIEW_TIMEOUT_S = 30.0
_LIMITS = Limits(rows=2000, size_bytes=16 * 1024 * 1024, age_s=float("inf"))
_OPTIONS: dict[str, Any] = {"enable.partition.eof": True, "fetch.min.bytes": 64 * 1024}


class LogReplay:
    """Of one thread. What customers allow is read to its end first, as erased rows must not come back."""

    def __init__(self, settings: Settings, database: Database) -> None:
        settings = with_registered_fleets(settings)
        self._topics = topics_of(settings)
        self.consents = ConsentList(settings.default_consent_tier, settings.anonymization_level)
        self._view = CompactedView(
            partial(build_consumer, settings, f"{_CLIENT_ID}-consent", group=None), CONSENT, self.consents.update
        )
        self._decode = decoder_of(settings, self.consents)
        self.store = PostgresStore(database, self.consents)
        self._consumer: Consumer = build_consumer(settings, _CLIENT_ID, group=None, **_OPTIONS)

    def open(self) -> None:
        """Raises Unavailable where Kafka does not answer."""
        self._view.start()
        if not self._view.wait_ready(_VIEW_TIMEOUT_S):
            raise Unavailable(f"{CONSENT} could not be read to its end within {_VIEW_TIMEOUT_S:.0f} s")

    def close(self) -> None:
        self._view.close(Deadline(5.0))
        self._consumer.close()

    def catch_up(self, fill_gap: FillGap) -> dict[str, int]:
        """Write what stands in the log behind the marks, up to its present end: topic -> rows.

        fill_gap: brings what the log no longer has, and may move the mark.
        """
        return {topic: self._topic(topic, fill_gap) for topic in self._topics}

    def _topic(self, topic: str, fill_gap: FillGap) -> int:
        partitions = [Partition(topic, number) for number in range(partition_count(self._consumer, topic))]
        buffers = {partition: self._buffer(partition, fill_gap) for partition in partitions}
        self._consumer.assign([TopicPartition(p.topic, p.number, buffer.position) for p, buffer in buffers.items()])
        open_partitions, written = set(partitions), 0
        silence = Deadline(_SILENCE_S)
        try:
            while open_partitions:
                message = self._consumer.poll(0.2)
                if message is None:
                    if silence.passed:
                        raise Unavailable(f"{topic} was not read to its end: nothing came for {_SILENCE_S:.0f} s")
                    continue
                silence = Deadline(_SILENCE_S)
                error = message.error()
                if error is not None and error.name() == "_PARTITION_EOF":
                    open_partitions.discard(Partition(topic, message.partition() or 0))
                elif check_consumed(message):
                    record = record_of(message)
                    partition = Partition(topic, record.partition)
                    buffer = buffers[partition]
                    try:
                        buffer.add(self._decode(record), time.monotonic())
                    except (Skip, Poison):
                        buffer.skip(record.offset)
                    if buffer.full:
                        written += self._write(partition, buffer)
        finally:
            self._consumer.unassign()
        return written + sum(self._write(partition, buffer) for partition, buffer in buffers.items())

    def _buffer(self, partition: Partition, fill_gap: FillGap) -> Buffer[AnyRow]:
        low, _ = self._consumer.get_watermark_offsets(TopicPartition(partition.topic, partition.number), timeout=5.0)
        mark = self.store.open(partition)
        if mark.next_offset < low:
            fill_gap(partition, mark.next_offset, low)
            mark = self.store.open(partition)
        return Buffer(mark, max(mark.next_offset, low), _LIMITS)

    def _write(self, partition: Partition, buffer: Buffer[AnyRow]) -> int:
        written = 0
        while (batch := buffer.batch()) is not None:
            self.store.write(partition, batch)
            buffer.written(batch, time.monotonic())
            written += len(batch.entries)
        return written
