"""Reads records back at their offsets, outside the consumer group: the log is the memory of the gate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException

from runtime.errors import Retry, Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.read_back import KeptConsumer, read_back

log = logging.getLogger(__name__)


class LogReader:
    """One groupless consumer; questions are answered one after the other."""

    def __init__(self, build: Callable[[], Consumer], timeout_s: float = 3.0) -> None:
        self._kept = KeptConsumer(build)
        self._timeout_s = timeout_s
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
                    await asyncio.sleep(error.after_s)

    def close(self, deadline: Deadline) -> None:
        self._kept.close()

    def _read(self, topic: str, partition: int, offsets: range) -> list[Record]:
        try:
            with self._kept.reading() as consumer:
                return read_back(consumer, topic, partition, offsets, self._timeout_s)
        except (KafkaException, TimeoutError, Unavailable) as error:
            detail = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise Retry(f"{topic} cannot be read: {detail}", after_s=0.5) from error
