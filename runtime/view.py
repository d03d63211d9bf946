"""A compacted topic as a live view: read groupless from the beginning, ready at its end, followed from there."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, TopicPartition

from runtime.errors import VlastreamError
from runtime.kafka import check_consumed, end_positions, record_of
from runtime.lifecycle import Deadline

log = logging.getLogger(__name__)

#: key, value (None: a tombstone) and the broker's append time in milliseconds; called on the view's thread.
OnRecord = Callable[[bytes, bytes | None, int], None]


class CompactedView:
    """Owns one consumer and one thread. A handler that raises loses nothing but that record: it is logged."""

    def __init__(self, build: Callable[[], Consumer], topic: str, on_record: OnRecord) -> None:
        self._build = build
        self._topic = topic
        self._on_record = on_record
        #: Where to read on in each partition: what was superseded is not heard again after a lost connection.
        self._next: dict[int, int] = {}
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"view {topic}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether everything that stood in the topic at the start has been read."""
        return self._ready.is_set()

    def wait_ready(self, timeout_s: float) -> bool:
        return self._ready.wait(timeout_s)

    def close(self, deadline: Deadline) -> None:
        self._stop.set()
        self._thread.join(timeout=deadline.remaining_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer = self._build()
            try:
                self._follow(consumer)
            except (VlastreamError, KafkaException) as error:
                log.warning("connecting to %s again: %s", self._topic, error, extra={"action": "view_retry"})
                self._stop.wait(1.0)
            finally:
                consumer.close()

    def _follow(self, consumer: Consumer) -> None:
        ends = end_positions(consumer, self._topic)
        consumer.assign([TopicPartition(self._topic, p, self._next.get(p, OFFSET_BEGINNING)) for p in ends])
        while not self._stop.is_set():
            if not self._ready.is_set() and self._caught_up(consumer, ends):
                self._ready.set()
            message = consumer.poll(0.1)
            if message is None or not check_consumed(message):
                continue
            record = record_of(message)
            self._next[record.partition] = record.offset + 1
            try:
                self._on_record(record.key or b"", record.value, record.timestamp_ms)
            except Exception:
                log.exception("passing over a record of %s", self._topic, extra={"action": "view_skip"})

    def _caught_up(self, consumer: Consumer, ends: dict[int, int]) -> bool:
        positions = consumer.position([TopicPartition(self._topic, partition) for partition in ends])
        # A partition that was never read has no position: caught up only where nothing stood in it.
        return all(max(p.offset, self._next.get(p.partition, 0)) >= ends[p.partition] for p in positions)
