"""Publishes records and says when the broker has them: a Producer with one thread that serves its reports.

confluent-kafka's AIOProducer carries no headers, hence this small bridge to asyncio.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from runtime.errors import Fatal, Retry, Unavailable, VlastreamError
from runtime.metrics import Metrics
from schemas import headers as h

WARM_UP = "warm-up"


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where the broker put a record."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


#: Called on the publisher's thread, with what came of the record: exactly one of the two is set.
OnDelivery = Callable[[Delivered | None, Exception | None], None]


class PublisherPort(Protocol):
    """What a stage needs of a publisher; the in-memory broker of the tests has it too."""

    def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> None: ...

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
    ) -> Delivered: ...

    def flush(self, timeout_s: float) -> int: ...


class Publisher:
    """Thread-safe. `publish` reports by callback, `send` awaits the acknowledgement.

    on_failure is told once, from the publisher's thread, when its producer is done for.
    """

    def __init__(
        self, producer: Producer, metrics: Metrics, on_failure: Callable[[Exception], None] = lambda error: None
    ) -> None:
        self._producer = producer
        self._metrics = metrics
        self._on_failure = on_failure
        self._failure: Fatal | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve_reports, name="publisher", daemon=True)
        self._thread.start()

    def publish(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
        on_delivery: OnDelivery | None = None,
    ) -> None:
        """Hand a record over. Raises Retry while the local queue is full, Fatal for a producer that is done for."""
        if self._failure is not None:
            raise self._failure
        started = time.perf_counter()

        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._metrics.produce_failures.labels(topic).inc()
                if on_delivery is not None:
                    on_delivery(None, _translated(error))
                return
            self._metrics.records_produced.labels(topic).inc()
            self._metrics.produce_duration.labels(topic).observe(time.perf_counter() - started)
            if on_delivery is not None:
                where = Delivered(topic, message.partition() or 0, message.offset() or 0, message.timestamp()[1])
                on_delivery(where, None)

        # -1 is librdkafka's "let the partitioner choose".
        target = -1 if partition is None else partition
        try:
            self._producer.produce(
                topic, value=value, key=key, headers=list(headers or []), partition=target, on_delivery=report
            )
        except BufferError as error:
            raise Retry("the producer's queue is full", after_s=0.05) from error
        except KafkaException as error:
            raise _translated(error.args[0]) from error

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        headers: h.RawHeaders | None = None,
        partition: int | None = None,
    ) -> Delivered:
        """Publish and wait for the acknowledgement. Raises Retry, Unavailable or Fatal."""
        loop = asyncio.get_running_loop()
        delivered: asyncio.Future[Delivered] = loop.create_future()

        def settle(where: Delivered | None, error: Exception | None) -> None:
            if delivered.done():
                return
            if where is not None:
                delivered.set_result(where)
            else:
                delivered.set_exception(error or Fatal("delivery failed without a reason"))

        def report(where: Delivered | None, error: Exception | None) -> None:
            # The loop is gone only when the process is going: nobody waits any more.
            if not loop.is_closed():
                loop.call_soon_threadsafe(settle, where, error)

        self.publish(topic, value, key=key, headers=headers, partition=partition, on_delivery=report)
        return await delivered

    def warm_up(self, topic: str, partition: int, timeout_s: float = 15.0) -> None:
        """Pay for the producer id and the connection now: a cold idempotent producer holds its first record 0.5 s."""
        done = threading.Event()
        failure: list[Exception] = []

        def report(where: Delivered | None, error: Exception | None) -> None:
            if error is not None:
                failure.append(error)
            done.set()

        self.publish(topic, b"", headers=h.encode({h.CORRELATION_ID: WARM_UP}), partition=partition, on_delivery=report)
        if not done.wait(timeout_s):
            raise Unavailable(f"Kafka took no record for {topic} within {timeout_s:.0f} s")
        if failure:
            raise failure[0]

    def flush(self, timeout_s: float) -> int:
        """Wait until every record is acknowledged or failed; returns how many are still open."""
        return int(self._producer.flush(max(timeout_s, 0.0)))

    def close(self, timeout_s: float) -> None:
        self.flush(timeout_s)
        self._stop.set()
        self._thread.join(timeout=2.0)

    def _serve_reports(self) -> None:
        while not self._stop.is_set():
            try:
                self._producer.poll(0.2)
            except VlastreamError as error:
                # Whatever is in this producer will never arrive, and its records are not ours to give to another one.
                self._failure = Fatal(str(error))
                self._on_failure(self._failure)
                return


def _translated(error: KafkaError) -> Exception:
    if error.fatal():
        return Fatal(f"Kafka producer failed: {error.str()}")
    if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.TOPIC_AUTHORIZATION_FAILED):
        return Fatal(f"Kafka refuses the record: {error.str()}")
    if error.name() in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION"):
        return Fatal(f"{error.str()}: run `vlastream topics apply`")
    return Unavailable(f"Kafka did not take the record: {error.str()}")
