"""Kafka: requests produced on the fleet's own topic, replies read from the robot's partition of the replies.

The gate stamps customer, deadline and reply address itself, so a robot sends the message, its request id and
nothing else that would have to be trusted. Replies of one robot arrive at the partition that its key has; other
robots may share it, and their replies are passed over by correlation id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

try:
    from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
except ImportError as error:
    raise ImportError("KafkaTransport needs confluent-kafka: install vlastream with its extra `client`") from error
from google.protobuf.message import DecodeError

from robot_client.chunk import ActionChunk, BadReply, chunk_from_outcome
from robot_client.errors import AttemptFailed, Refused
from schemas import headers as h
from schemas.codes import STATUS, Code
from schemas.ids import partition_of
from schemas.messages import InferenceRequest, Outcome
from schemas.topics import MAX_MESSAGE_BYTES, replies_topic, requests_topic

log = logging.getLogger(__name__)

#: How long one poll of the serving thread may block; also the delay until a failed delivery is noticed.
POLL_S = 0.1


class KafkaTransport:
    """One robot's way to Kafka.

    frame_lifetime_ms: how long a frame may wait for the broker before it is thrown away, at least 1. Give the
    longest ttl_ms that this robot uses. security: librdkafka properties such as sasl.* and ssl.*.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        fleet: str,
        robot_id: str,
        frame_lifetime_ms: int = 2000,
        security: Mapping[str, Any] | None = None,
        open_timeout_s: float = 15.0,
    ) -> None:
        self._fleet = fleet
        self._requests = requests_topic(fleet)
        self._replies = replies_topic(fleet)
        self._key = robot_id.encode()
        self._event_source = f"robots/{fleet}/{robot_id}"
        self._open_timeout_s = open_timeout_s
        self._connection = {
            **connection_config(bootstrap_servers, client_id=f"robot-{robot_id}"),
            **(security or {}),
        }
        self._frame_lifetime_ms = frame_lifetime_ms
        self._waiting: dict[str, asyncio.Future[tuple[dict[str, str], bytes]]] = {}
        self._stop = threading.Event()
        self._warm = threading.Event()
        self._producer: Producer | None = None
        self._consumer: Consumer | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Resolve the reply position, then warm the producer up: after this the first frame is not late.

        Raises ConnectionError where no broker answers in time or the fleet's topics do not exist.
        """
        self._loop = asyncio.get_running_loop()
        try:
            await asyncio.to_thread(self._connect)
        except BaseException:
            await self.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="robot-kafka", daemon=True)
        self._thread.start()

    async def exchange(self, request: InferenceRequest, timeout_s: float) -> ActionChunk:
        if self._producer is None or self._loop is None:
            raise RuntimeError("open() the transport before the first exchange")
        request_id = request.request_id
        reply: asyncio.Future[tuple[dict[str, str], bytes]] = self._loop.create_future()
        self._waiting[request_id] = reply
        try:
            self._send(self._producer, request)
            headers, value = await asyncio.wait_for(reply, timeout_s)
        except TimeoutError as error:
            raise AttemptFailed(f"no reply within {timeout_s:.2f} s", timed_out=True) from error
        finally:
            self._waiting.pop(request_id, None)
        return read_reply(headers, value, request_id)

    async def close(self) -> None:
        """Frames that wait for the broker are given up with the robot that would have executed their actions."""
        self._stop.set()
        await asyncio.to_thread(self._disconnect)

    def _connect(self) -> None:
        end = time.monotonic() + self._open_timeout_s
        # A group's name that a fleet's user may use, though none is joined.
        group = {"group.id": f"fleet.{self._fleet}.robots"}
        self._consumer = Consumer({**self._connection, **consumer_config(), **group})
        self._consumer.assign([self._reply_position(self._consumer, end)])
        self._producer = Producer(
            {
                **self._connection,
                **producer_config(self._frame_lifetime_ms),
                "stats_cb": self._note_statistics,
            }
        )
        try:
            self._producer.list_topics(self._requests, timeout=_left_s(end))
        except KafkaException as error:
            raise ConnectionError(f"Kafka does not answer: {error.args[0].str()}") from error
        while not self._warm.is_set():
            if time.monotonic() >= end:
                raise ConnectionError(f"Kafka gave no producer id within {self._open_timeout_s:.0f} s")
            self._producer.poll(POLL_S)

    def _reply_position(self, consumer: Consumer, end: float) -> TopicPartition:
        """The end of this robot's partition, known before anything is sent, so that no reply is missed."""
        while True:
            try:
                found = consumer.list_topics(self._replies, timeout=_left_s(end)).topics[self._replies]
                if found.error is not None or not found.partitions:
                    raise ConnectionError(f"no topic {self._replies} for this user: was the fleet added?")
                place = TopicPartition(self._replies, partition_of(self._key, len(found.partitions)))
                _, place.offset = consumer.get_watermark_offsets(place, timeout=_left_s(end))
                return place
            except KafkaException as error:
                # A leader that moves or is just being elected answers in a moment.
                if time.monotonic() + POLL_S >= end:
                    raise ConnectionError(f"Kafka does not answer: {error.args[0].str()}") from error
                time.sleep(POLL_S)

    def _note_statistics(self, text: str) -> None:
        # Without a producer id the first record would wait for one: up to half a second.
        if not self._warm.is_set() and json.loads(text).get("eos", {}).get("idemp_state") == "Assigned":
            self._warm.set()

    def _disconnect(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._producer is not None:
            self._producer.purge()
            self._producer.flush(1.0)
        if self._consumer is not None:
            self._consumer.close()
        # The producer holds this object by its callback: letting go is what ends its threads and connections.
        self._producer = self._consumer = None

    def _send(self, producer: Producer, request: InferenceRequest) -> None:
        def report(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                failure = AttemptFailed(f"the frame did not reach Kafka: {error.str()}")
                self._from_thread(request.request_id, failure)

        value = request.SerializeToString()
        try:
            producer.produce(
                self._requests,
                value=value,
                key=self._key,
                headers=list(request_headers(request.request_id, self._event_source, now_s=time.time())),
                on_delivery=report,
            )
        except BufferError as error:
            raise AttemptFailed("the producer's queue is full") from error
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                raise Refused(
                    f"the request has {len(value)} bytes, at most {MAX_MESSAGE_BYTES} fit: send smaller images",
                    code=Code.TOO_LARGE,
                    status=STATUS[Code.TOO_LARGE],
                    request_id=request.request_id,
                ) from error
            raise AttemptFailed(f"Kafka did not take the frame: {reason.str()}") from error

    def _serve(self) -> None:
        """Serving thread: delivery reports and replies, until close."""
        assert self._producer is not None
        assert self._consumer is not None
        while not self._stop.is_set():
            self._producer.poll(0)
            message = self._consumer.poll(POLL_S)
            if message is None or message.error() is not None:
                continue
            raw: Any = message.headers()
            headers = h.decode(raw)
            correlation_id = headers.get(h.CORRELATION_ID, "")
            if correlation_id in self._waiting:
                self._from_thread(correlation_id, (headers, message.value() or b""))

    def _from_thread(self, request_id: str, answer: tuple[dict[str, str], bytes] | AttemptFailed) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._settle, request_id, answer)

    def _settle(self, request_id: str, answer: tuple[dict[str, str], bytes] | AttemptFailed) -> None:
        reply = self._waiting.get(request_id)
        if reply is None or reply.done():
            return
        if isinstance(answer, AttemptFailed):
            reply.set_exception(answer)
        else:
            reply.set_result(answer)


def _left_s(end: float) -> float:
    """Seconds until `end`, for librdkafka, which takes 0 for no limit."""
    return max(end - time.monotonic(), 0.1)


def connection_config(bootstrap_servers: str, *, client_id: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap_servers,
        "client.id": client_id,
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        # librdkafka forgets its brokers when a cluster that just came back names none: back to bootstrap.servers soon.
        "metadata.recovery.rebootstrap.trigger.ms": 3000,
        "socket.nagle.disable": True,
        "allow.auto.create.topics": False,
        # librdkafka's lines go where the robot's own logging sends them, not to standard error.
        "logger": log,
    }


def producer_config(frame_lifetime_ms: int) -> dict[str, Any]:
    return {
        "enable.idempotence": True,
        "acks": "all",
        "linger.ms": 0,
        "compression.type": "none",
        # As every other client of the pipeline places keys: a robot's requests keep to one partition.
        "partitioner": "murmur2_random",
        "message.max.bytes": MAX_MESSAGE_BYTES,
        # A frame that waits longer than it lives is of no use to anyone.
        "delivery.timeout.ms": frame_lifetime_ms,
        "retry.backoff.ms": 50,
        "statistics.interval.ms": 250,
    }


def consumer_config() -> dict[str, Any]:
    return {
        # librdkafka wants a group id; with assign() no group is joined and nothing is committed.
        "group.id": "robot-replies",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "latest",
        "fetch.error.backoff.ms": 50,
    }


def request_headers(request_id: str, source: str, *, now_s: float) -> h.RawHeaders:
    """Headers of a request record. The correlation id is the request id: a retry awaits the same reply."""
    return h.encode(
        {
            **h.cloud_event(event_type="vla.request.v1", event_id=request_id, source=source, now_s=now_s),
            h.REQUEST_ID: request_id,
            h.CORRELATION_ID: request_id,
        }
    )


def read_reply(headers: Mapping[str, str], value: bytes, request_id: str) -> ActionChunk:
    """The chunk of a reply record. Raises Refused for a rejection and for a reply that cannot be read."""
    try:
        return chunk_from_outcome(Outcome.FromString(value), headers)
    except (BadReply, DecodeError) as error:
        raise Refused(str(error), code="bad_reply", status=200, request_id=request_id) from error
