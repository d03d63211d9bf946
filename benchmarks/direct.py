"""Many robots of a fleet that produce to Kafka themselves, over one producer and one consumer of replies."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from benchmarks.frames import CAMERAS, ROBOT_TYPE, View, new_request_id
from benchmarks.load import OK, Answer
from robot_client.kafka import connection_config, consumer_config, producer_config, request_headers
from runtime.kafka import end_positions
from schemas import headers as h
from schemas.messages import Image, ImageEncoding, InferenceRequest, Outcome
from schemas.topics import replies_topic, requests_topic

_SOURCE = "benchmarks"


class DirectClients:
    """`send` is a `load.Send`. Configured as robot_client.kafka configures a robot's own clients."""

    def __init__(self, bootstrap: str, *, fleet: str, model: str, views: Sequence[View], ttl_ms: int) -> None:
        self._topic, self._replies = requests_topic(fleet), replies_topic(fleet)
        connection = connection_config(bootstrap, client_id="benchmark")
        self._producer = Producer({**connection, **producer_config(60_000), "queue.buffering.max.kbytes": 512 * 1024})
        self._consumer = Consumer({**connection, **consumer_config()})
        self._messages = [_message(view, model, ttl_ms) for view in views]
        self._waiting: dict[str, asyncio.Future[Answer]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="replies", daemon=True)
        self._run = uuid.uuid4().hex[:8]

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        ends = await asyncio.to_thread(end_positions, self._consumer, self._replies)
        self._consumer.assign([TopicPartition(self._replies, number, offset) for number, offset in ends.items()])
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._producer.flush, 5.0)
        self._consumer.close()

    async def send(self, robot: int, step: int) -> Answer:
        request_id = new_request_id()
        answer: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[request_id] = answer
        try:
            self.produce(request_id, robot, step)
            return await answer
        except BufferError:
            return Answer(request_id, "producer_full")
        finally:
            self._waiting.pop(request_id, None)

    def produce(self, request_id: str, robot: int, step: int) -> None:
        """Only send. Raises BufferError where the producer's queue is full."""
        name = f"{self._run}-{robot}"
        request = InferenceRequest()
        request.CopyFrom(self._messages[(robot + step) % len(self._messages)])
        request.request_id, request.robot_id, request.episode_id, request.step = request_id, name, name, step
        self._producer.produce(
            self._topic,
            value=request.SerializeToString(),
            key=name.encode(),
            headers=list(request_headers(request_id, _SOURCE, now_s=time.time())),
            on_delivery=self._delivered(request_id),
        )

    def _delivered(self, request_id: str) -> Any:
        def report(error: KafkaError | None, _message: Message) -> None:
            if error is not None:
                self._settle(Answer(request_id, f"kafka: {error.name()}"))

        return report

    def _serve(self) -> None:
        """Thread: delivery reports and replies, until the end."""
        while not self._stop.is_set():
            self._producer.poll(0)
            # One at a time: `consume` of many waits for all of them or for the whole timeout.
            message = self._consumer.poll(0.01)
            if message is not None and message.error() is None:
                self._settle(_answer(message))

    def _settle(self, answer: Answer) -> None:
        if answer.request_id in self._waiting:
            self._loop.call_soon_threadsafe(self._finish, answer)

    def _finish(self, answer: Answer) -> None:
        future = self._waiting.get(answer.request_id)
        if future is not None and not future.done():
            future.set_result(answer)


def _answer(message: Message) -> Answer:
    raw: Any = message.headers()
    outcome = Outcome.FromString(message.value() or b"")
    request_id = h.decode(raw).get(h.CORRELATION_ID, "")
    if outcome.WhichOneof("kind") == "chunk":
        return Answer(request_id, OK, batch_size=outcome.chunk.result.batch_size)
    return Answer(request_id, outcome.rejection.code)


def _message(view: View, model: str, ttl_ms: int) -> InferenceRequest:
    return InferenceRequest(
        robot_type=ROBOT_TYPE,
        model=model,
        instruction=view.instruction,
        images=[
            Image(camera=camera, encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=jpeg)
            for camera, jpeg in zip(CAMERAS, view.jpegs, strict=False)
        ],
        state=view.state,
        ttl_ms=ttl_ms,
    )
