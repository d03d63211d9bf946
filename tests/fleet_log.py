"""A ledger kept outside the system: what was produced straight to Kafka, and what came back in the log."""

from __future__ import annotations

import itertools
import threading
import time
import uuid
from dataclasses import dataclass, field

from confluent_kafka import Consumer, TopicPartition

from runtime.kafka import build_consumer, build_producer, end_positions
from runtime.settings import Settings
from schemas import headers as h
from schemas.messages import (
    ActionMatrix,
    Completion,
    Image,
    ImageEncoding,
    InferenceRequest,
    InferenceResult,
    Outcome,
    WorkerHeartbeat,
)
from schemas.summary import summarize
from schemas.topics import OUTCOMES, REPLIES, REQUESTS, RESULTS, WORKERS, accepted_topic
from tests import pictures
from tests.cards import model


@dataclass
class OpenLoopLoad:
    """Produces requests at a fixed rate to the API's topic, whatever comes back."""

    settings: Settings
    rate_hz: float
    robots: int = 20
    sent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def __enter__(self) -> OpenLoopLoad:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        producer = build_producer(self.settings, "load")
        picture = pictures.jpeg()
        started = time.monotonic()
        for number in itertools.count():
            if self._stop.wait(max(started + number / self.rate_hz - time.monotonic(), 0)):
                break
            asked = request(number, robot_id=f"arm-{number % self.robots}", picture=picture)
            headers = {h.CUSTOMER_ID: "customer", h.CORRELATION_ID: asked.request_id}
            reply_to: dict[str, str | int] = {h.REPLY_TOPIC: REPLIES, h.REPLY_PARTITION: 0}
            producer.produce(
                REQUESTS,
                asked.SerializeToString(),
                key=asked.robot_id,
                headers=list(h.encode({**headers, **reply_to})),
            )
            producer.poll(0)
            self.sent.append(asked.request_id)
        assert producer.flush(30) == 0, "the load could not be produced"


class InstantWorker:
    """Plays the GPU workers of tests/cards.py: answers every accepted request at once, at least once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._card = model()
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._answer, name="instant worker", daemon=True),
            threading.Thread(target=self._beat, name="heartbeat", daemon=True),
        ]

    def __enter__(self) -> InstantWorker:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _beat(self) -> None:
        producer = build_producer(self._settings, "instant-worker-beat")
        beat = WorkerHeartbeat(worker_id="instant", deployment=self._card.deployment, model=self._card.model)
        while True:
            producer.produce(WORKERS, beat.SerializeToString(), key=b"instant")
            producer.flush(5)
            if self._stop.wait(0.5):
                return

    def _answer(self) -> None:
        producer = build_producer(self._settings, "instant-worker")
        consumer = build_consumer(self._settings, "instant-worker", group=None)
        topic = accepted_topic(self._card.deployment)
        consumer.assign([TopicPartition(topic, partition, 0) for partition in end_positions(consumer, topic)])
        chunk = ActionMatrix(horizon=1, dim=3, values=[0.01, 0.0, 0.0])
        while not self._stop.is_set():
            message = consumer.poll(0.1)
            if message is None or message.error() is not None or not message.value():
                continue
            headers = h.decode(message.headers())  # type: ignore[arg-type] # the stub lacks bytes
            source = h.Source.parse(headers[h.SOURCE])
            completion = Completion(
                row_id=headers[h.ROW_ID],
                request=summarize(
                    InferenceRequest.FromString(message.value() or b""),
                    customer_id=headers[h.CUSTOMER_ID],
                    consent_tier=headers[h.CONSENT_TIER],
                    requested_at_ms=int(headers[h.REQUESTED_AT_MS]),
                    deadline_ms=int(headers[h.DEADLINE_MS]),
                    source=source,
                ),
                result=InferenceResult(chunk=chunk, deployment=self._card.deployment),
            )
            producer.produce(RESULTS, completion.SerializeToString(), key=message.key(), partition=source.partition)
            producer.poll(0)
        producer.flush(10)
        consumer.close()


class OutcomeReader:
    """Every outcome in the log so far, in order, groupless."""

    def __init__(self, settings: Settings) -> None:
        self._consumer: Consumer = build_consumer(settings, "ledger", group=None)
        ends = end_positions(self._consumer, OUTCOMES)
        self._consumer.assign([TopicPartition(OUTCOMES, partition, 0) for partition in ends])
        self.outcomes: list[Outcome] = []

    def read_until(self, wanted: set[str], timeout_s: float) -> set[str]:
        """Read until every wanted request id has an outcome; returns those that have none after `timeout_s`."""
        end = time.monotonic() + timeout_s
        missing = wanted - {outcome.request.request_id for outcome in self.outcomes}
        while missing and time.monotonic() < end:
            message = self._consumer.poll(0.5)
            if message is not None and message.error() is None:
                self.outcomes.append(Outcome.FromString(message.value() or b""))
                missing.discard(self.outcomes[-1].request.request_id)
        return missing

    def close(self) -> None:
        self._consumer.close()


def request(number: int, *, robot_id: str, picture: bytes) -> InferenceRequest:
    """A valid request for tests/cards.py; `number` makes its content its own."""
    return InferenceRequest(
        request_id=str(uuid.uuid4()),
        robot_id=robot_id,
        robot_type="test_arm",
        model="test-model",
        instruction="pick up the red block",
        images=[Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=picture)],
        state=[0.5, 0.5],
        step=number,
        ttl_ms=60_000,
    )
