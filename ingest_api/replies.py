"""Request-reply over Kafka: who waits for which answer, and the consumer that brings the answers in.

One replies topic; each API process reads one partition of it by `assign()`, without a group: nothing rebalances,
and two processes that share a partition only pass over each other's answers.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from runtime.errors import Fatal, Overloaded, Unavailable
from runtime.kafka import check_consumed, partition_count, record_of
from runtime.lifecycle import Deadline
from runtime.publisher import WARM_UP
from schemas import headers as h
from schemas.topics import REPLIES

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Answers handed to the event loop at once.
_MOST_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Reply:
    """One record of the replies topic."""

    correlation_id: str
    value: bytes
    replayed: bool = False
    expired: bool = False
    #: Of the stage that wrote it; empty where there is none.
    traceparent: str = ""


class Pending(Generic[T]):
    """Futures by correlation id. Of the event loop's thread alone.

    An answer settles the future of its own id, once; whoever stops waiting drops the id, and what comes later
    finds nobody.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._futures: dict[str, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._futures)

    def open(self, correlation_id: str) -> asyncio.Future[T]:
        """A future for an id that is not in use. Raises Overloaded when too many wait."""
        if len(self._futures) >= self._capacity:
            raise Overloaded(f"{self._capacity} requests wait for their reply already: send less", 1.0)
        if correlation_id in self._futures:
            raise ValueError(f"correlation id {correlation_id} is in use")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._futures[correlation_id] = future
        # However it ends, also by cancellation, nobody is left behind in the table.
        future.add_done_callback(partial(self._forget, correlation_id))
        return future

    def settle(self, correlation_id: str, answer: T) -> bool:
        """Give an answer to whoever waits for it. False: nobody does (any more)."""
        future = self._futures.pop(correlation_id, None)
        if future is None or future.done():
            return False
        future.set_result(answer)
        return True

    def _forget(self, correlation_id: str, future: asyncio.Future[T]) -> None:
        # The id may be in use again by now.
        if self._futures.get(correlation_id) is future:
            del self._futures[correlation_id]

    def fail_all(self, error: Exception) -> None:
        for correlation_id in list(self._futures):
            self.fail(correlation_id, error)

    def fail(self, correlation_id: str, error: Exception) -> bool:
        future = self._futures.pop(correlation_id, None)
        if future is None or future.done():
            return False
        future.set_exception(error)
        return True


#: Builds a consumer that reports its errors to the function given.
Build = Callable[[Callable[[KafkaError], None]], Consumer]


class ReplyReader:
    """Owns one consumer and one thread. `deliver` is called on that thread with answers in their order."""

    def __init__(
        self,
        build: Build,
        *,
        partition: int,
        deliver: Callable[[list[Reply]], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._build = build
        self.partition = partition
        self._deliver = deliver
        self._on_failure = on_failure
        self._stop = threading.Event()
        self._positioned = threading.Event()
        self._proven = threading.Event()
        self._proof: bytes | None = None
        self._next_offset: int | None = None
        self._brokers_up = False
        self._thread = threading.Thread(target=self._run, name="replies", daemon=True)

    @property
    def ready(self) -> bool:
        """Whether a record has made the way to this partition and back to us."""
        return self._proven.is_set()

    @property
    def brokers_up(self) -> bool:
        """False from the moment when no broker can be reached until one answers again."""
        return self._brokers_up

    def start(self) -> None:
        self._thread.start()

    def prove(self, publish: Callable[[bytes], None], proof: bytes, timeout_s: float) -> None:
        """Send a record of our own to our partition and wait until it is read back.

        Raises Unavailable where that takes longer than `timeout_s`.
        """
        deadline = Deadline(timeout_s)
        if not self._positioned.wait(deadline.remaining_s):
            raise Unavailable(f"the end of {REPLIES}/{self.partition} could not be found within {timeout_s:.0f} s")
        self._proof = proof
        publish(proof)
        if not self._proven.wait(deadline.remaining_s):
            raise Unavailable(f"a record to {REPLIES}/{self.partition} did not come back within {timeout_s:.0f} s")

    def close(self, deadline: Deadline) -> None:
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=deadline.remaining_s)

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer = None
            try:
                consumer = self._build(self._on_error)
                self._follow(consumer)
            except Fatal as error:
                self._on_failure(error)
                return
            except (Unavailable, KafkaException) as error:
                self._brokers_up = False
                log.warning("connecting to the replies again: %s", error, extra={"action": "replies_retry"})
                self._stop.wait(0.5)
            except Exception as error:
                self._on_failure(error)
                return
            finally:
                if consumer is not None:
                    consumer.close()

    def _follow(self, consumer: Consumer) -> None:
        count = partition_count(consumer, REPLIES)
        if self.partition >= count:
            raise Fatal(f"{REPLIES} has {count} partitions, this process reads number {self.partition}")
        if self._next_offset is None:
            # The end as a number, not as "the end": what is sent from now on is read, whenever the fetch begins.
            place = TopicPartition(REPLIES, self.partition)
            _, self._next_offset = consumer.get_watermark_offsets(place, timeout=5.0)
        consumer.assign([TopicPartition(REPLIES, self.partition, self._next_offset)])
        self._brokers_up = True
        self._positioned.set()
        while not self._stop.is_set():
            message = consumer.poll(0.25)
            if message is None:
                if not self._brokers_up:
                    consumer.list_topics(REPLIES, timeout=1.0)
                    self._brokers_up = True
                continue
            self._take(consumer, message)

    def _take(self, consumer: Consumer, message: Message | None) -> None:
        """This record and all that are here already, in one hand-over."""
        replies: list[Reply] = []
        while message is not None:
            if check_consumed(message):
                self._next_offset = (message.offset() or 0) + 1
                reply = self._read(message)
                if reply is not None:
                    replies.append(reply)
            message = consumer.poll(0) if len(replies) < _MOST_AT_ONCE else None
        if replies:
            self._deliver(replies)

    def _read(self, message: Message) -> Reply | None:
        record = record_of(message)
        headers = record.headers
        correlation_id = headers.get(h.CORRELATION_ID, "")
        if correlation_id == WARM_UP:
            if record.value == self._proof:
                self._proven.set()
            return None
        return Reply(
            correlation_id=correlation_id,
            value=record.value or b"",
            replayed=headers.get(h.REPLAYED) == "true",
            expired=headers.get(h.EXPIRED) == "true",
            traceparent=headers.get(h.TRACEPARENT, ""),
        )

    def _on_error(self, error: KafkaError) -> None:
        if error.name() == "_ALL_BROKERS_DOWN":
            self._brokers_up = False
