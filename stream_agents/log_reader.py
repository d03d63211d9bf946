"""Reads records back at their offsets, outside the consumer group: the log is the memory of the gate."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.errors import Retry
from runtime.kafka import Record, check_consumed, record_of
from runtime.lifecycle import Deadline

log = logging.getLogger(__name__)

#: For the consumer: a fetch that waits for more at the end of a partition would hold up the next question to the same
#: broker, 100 ms each; and what lies behind the record that was asked for is of no use.
SINGLE_READS: dict[str, Any] = {"fetch.wait.max.ms": 1, "fetch.message.max.bytes": 64 * 1024}


class LogReader:
    """One groupless consumer, built at the first question; questions are answered one after the other."""

    def __init__(self, build: Callable[[], Consumer], timeout_s: float = 3.0) -> None:
        self._build = build
        self._timeout_s = timeout_s
        self._consumer: Consumer | None = None
        self._lock = asyncio.Lock()

    async def read(self, topic: str, partition: int, offsets: range) -> list[Record]:
        """The records that lie at these offsets, in order; fewer where some hold none, or retention took them.

        A record at or after the last of the offsets must exist. Does not give up while Kafka is away.
        """
        async with self._lock:
            while True:
                try:
                    return await asyncio.to_thread(self._read, topic, partition, offsets)
                except Retry as error:
                    log.warning("reading the log again: %s", error, extra={"action": "retry", "topic": topic})

    def close(self, deadline: Deadline) -> None:
        if self._consumer is not None:
            self._consumer.close()

    def _read(self, topic: str, partition: int, offsets: range) -> list[Record]:
        if self._consumer is None:
            self._consumer = self._build()
        found: list[Record] = []
        try:
            # Where the first offset is gone, the consumer starts at the oldest record that is left.
            self._consumer.assign([TopicPartition(topic, partition, offsets.start)])
            end = time.monotonic() + self._timeout_s
            while time.monotonic() < end:
                message = self._consumer.poll(0.1)
                if message is None or not check_consumed(message):
                    continue
                record = record_of(message)
                if (record.topic, record.partition) != (topic, partition):
                    continue
                if record.offset in offsets:
                    found.append(record)
                    end = time.monotonic() + self._timeout_s
                if record.offset >= offsets.stop - 1:
                    return found
        except KafkaException as error:
            raise Retry(f"{topic} cannot be read: {error.args[0].str()}", after_s=0.5) from error
        finally:
            self._consumer.unassign()
        raise Retry(f"{topic}/{partition}/{offsets.start} did not come within {self._timeout_s} s", after_s=0.5)
