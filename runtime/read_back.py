"""Records of the log read back at their offsets, outside of any consumer group."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from confluent_kafka import Consumer, TopicPartition

from runtime.kafka import Record, check_consumed, record_of

#: For the consumer: a fetch that waits for more at the end of a partition would hold up the next question to the same
#: broker, 100 ms each; and what lies behind the record that was asked for is of no use. No statistics: they pile up,
#: without limit, until somebody polls, and nobody does between two questions. So no BrokerWatch looks after such a
#: consumer: `KeptConsumer` does.
SINGLE_READS: dict[str, Any] = {
    "fetch.wait.max.ms": 1,
    "fetch.message.max.bytes": 64 * 1024,
    "statistics.interval.ms": 0,
}


class KeptConsumer:
    """A groupless consumer for single reads: built at the first one, and anew where one has failed. Not thread-safe."""

    def __init__(self, build: Callable[[], Consumer]) -> None:
        self._build = build
        self._consumer: Consumer | None = None

    @contextmanager
    def reading(self) -> Iterator[Consumer]:
        """For one read. One that raises may have lost its brokers: the next read gets another."""
        if self._consumer is None:
            self._consumer = self._build()
        try:
            yield self._consumer
        except Exception:
            self.close()
            raise

    def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()


def read_back(consumer: Consumer, topic: str, partition: int, offsets: range, timeout_s: float) -> list[Record]:
    """The records that lie at these offsets, in order; fewer where some hold none, or retention took them.

    A record at or after the last of the offsets must exist. consumer: groupless, assigned to nothing before and after.
    timeout_s: until each next of them. Raises TimeoutError, KafkaException, and Fatal as `check_consumed` does.
    """
    found: list[Record] = []
    try:
        # Where the first offset is gone, the consumer starts at the oldest record that is left.
        consumer.assign([TopicPartition(topic, partition, offsets.start)])
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            message = consumer.poll(0.1)
            if message is None or not check_consumed(message):
                continue
            record = record_of(message)
            if (record.topic, record.partition) != (topic, partition):
                continue
            if record.offset in offsets:
                found.append(record)
                end = time.monotonic() + timeout_s
            if record.offset >= offsets.stop - 1:
                return found
    finally:
        consumer.unassign()
    raise TimeoutError(f"{topic}/{partition}/{offsets.start} did not come within {timeout_s} s")
