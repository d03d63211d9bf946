"""Reads records back at their offsets, outside the consumer group: the log is the memory of the gate."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from confluent_kafka import Consumer, KafkaException

from runtime.errors import Retry, Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.read_back import read_back

log = logging.getLogger(__name__)


class LogReader:
    """One groupless consumer, built at the first question and anew where a read has failed.

    Questions are answered one after the other.
    """

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
                    await asyncio.sleep(error.after_s)

    def close(self, deadline: Deadline) -> None:
        self._drop()

    def _read(self, topic: str, partition: int, offsets: range) -> list[Record]:
        if self._consumer is None:
            self._consumer = self._build()
        try:
            return read_back(self._consumer, topic, partition, offsets, self._timeout_s)
        except (KafkaException, TimeoutError, Unavailable) as error:
            # It may have lost its brokers for good.
            self._drop()
            detail = error.args[0].str() if isinstance(error, KafkaException) else str(error)
            raise Retry(f"{topic} cannot be read: {detail}", after_s=0.5) from error

    def _drop(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close()
