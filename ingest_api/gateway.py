"""The door to the log: a request goes out as a record, its answer comes back as a future."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from ingest_api.replies import Build, Pending, Reply, ReplyReader
from runtime.errors import Fatal, Retry, Unavailable, VlastreamError
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import WARM_UP, Delivered, PublisherPort
from schemas import headers as h
from schemas.topics import REPLIES, REQUESTS

#: Longest request id that is repeated in a header; the gate refuses what is no UUID.
_LONGEST_HEADER_ID = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request on its way out. `value` is the message of `topic`, `robot_id` its key (empty: none)."""

    topic: str = REQUESTS
    value: bytes
    robot_id: bytes
    request_id: str
    customer_id: str
    #: A valid W3C traceparent, or empty.
    traceparent: str = ""


class NoReply(Exception):
    """Nobody answered in time. `acknowledged`: the log has the request, so its outcome may still come."""

    def __init__(self, acknowledged: bool) -> None:
        super().__init__("no reply in time")
        self.acknowledged = acknowledged


class Gateway(Protocol):
    """What the inference route needs of the way through Kafka."""

    @property
    def waiting_for(self) -> list[str]:
        """What is missing before requests can be taken; empty when ready."""
        ...

    def ask(
        self, question: Question, timeout_s: float, on_settled: Callable[[], None] | None = None
    ) -> asyncio.Future[Reply]:
        """Send a request; the future brings its reply, NoReply or Unavailable. Cancel it to stop waiting.

        on_settled: called on the event loop once the log has the record or never will, unless this raises;
        never before this returns.
        Raises Overloaded where too many wait already, Unavailable where Kafka is away.
        """
        ...


class KafkaGateway:
    """Requests to vla.requests.v1, replies from one partition of vla.replies.v1.

    on_failure: called from any thread once Kafka's clients are done for: only a new process helps.
    """

    def __init__(
        self,
        *,
        publisher: PublisherPort,
        build_consumer: Build,
        partition: int,
        capacity: int,
        metrics: Metrics,
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._publisher = publisher
        self._build_consumer = build_consumer
        self._partition = partition
        self._pending: Pending[Reply] = Pending(capacity)
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._reader: ReplyReader | None = None
        self._on_failure = on_failure
        metrics.requests_waiting.set_function(lambda: len(self._pending))

    @property
    def waiting_for(self) -> list[str]:
        if self._reader is None or not self._reader.ready:
            return ["reply path"]
        return [] if self._reader.brokers_up else ["kafka"]

    def open(self, loop: asyncio.AbstractEventLoop, timeout_s: float = 3.0) -> None:
        """Find the end of our partition and prove the way there and back. Blocks; raises Unavailable.

        May be tried again. loop: where futures live.
        """
        self._loop = loop
        if self._reader is None:
            self._reader = ReplyReader(
                self._build_consumer, partition=self._partition, deliver=self._deliver, on_failure=self._on_failure
            )
            self._reader.start()
        self._reader.prove(self._publish_proof, uuid.uuid4().bytes, timeout_s)

    def close(self, deadline: Deadline) -> None:
        if self._reader is not None:
            self._reader.close(deadline)

    def abandon(self) -> None:
        """Wait no longer for any reply, as the process ends. On the event loop's thread."""
        self._pending.fail_all(Unavailable("this process is stopping", retry_after_s=1.0))

    def ask(
        self, question: Question, timeout_s: float, on_settled: Callable[[], None] | None = None
    ) -> asyncio.Future[Reply]:
        missing = self.waiting_for
        if missing:
            raise Unavailable(f"the API waits for: {', '.join(missing)}")
        loop = asyncio.get_running_loop()
        correlation_id = uuid.uuid4().hex
        future = self._pending.open(correlation_id)
        acknowledged = False

        def report(where: Delivered | None, error: Exception | None) -> None:
            nonlocal acknowledged
            if on_settled is not None:
                self._on_loop(loop, on_settled)
            if where is not None:
                acknowledged = True
                return
            if isinstance(error, Fatal):
                self._on_failure(error)
            self._on_loop(loop, partial(self._pending.fail, correlation_id, _as_unavailable(error)))

        def give_up() -> None:
            self._pending.fail(correlation_id, NoReply(acknowledged))

        try:
            self._publisher.publish(
                question.topic,
                question.value,
                key=question.robot_id or None,
                headers=self._headers(question, correlation_id),
                on_delivery=report,
            )
        except VlastreamError as error:
            future.cancel()
            if isinstance(error, Fatal):
                self._on_failure(error)
            raise
        timer = loop.call_later(timeout_s, give_up)
        future.add_done_callback(lambda _: timer.cancel())
        return future

    def _headers(self, question: Question, correlation_id: str) -> h.RawHeaders:
        values: dict[str, str | int] = {
            **h.cloud_event(
                event_type="vla.request.v1", event_id=correlation_id, source="ingest_api", now_s=time.time()
            ),
            h.CORRELATION_ID: correlation_id,
            h.REPLY_TOPIC: REPLIES,
            h.REPLY_PARTITION: self._partition,
            h.CUSTOMER_ID: question.customer_id,
        }
        if question.request_id.isascii() and len(question.request_id) <= _LONGEST_HEADER_ID:
            values[h.REQUEST_ID] = question.request_id
        if question.traceparent:
            values[h.TRACEPARENT] = question.traceparent
        return h.encode(values)

    def _publish_proof(self, proof: bytes) -> None:
        headers = h.encode({h.CORRELATION_ID: WARM_UP})
        try:
            self._publisher.publish(REPLIES, proof, headers=headers, partition=self._partition)
        except Retry as error:
            raise Unavailable(str(error)) from error

    def _deliver(self, replies: list[Reply]) -> None:
        if self._loop is not None:
            self._on_loop(self._loop, partial(self._settle, replies))

    @staticmethod
    def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
        # The loop is closed only when the process is going: nobody waits any more.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    def _settle(self, replies: list[Reply]) -> None:
        for reply in replies:
            if not self._pending.settle(reply.correlation_id, reply):
                self._metrics.replies_late.inc()


def _as_unavailable(error: Exception | None) -> Unavailable:
    return error if isinstance(error, Unavailable) else Unavailable(f"Kafka did not take the request: {error}")
