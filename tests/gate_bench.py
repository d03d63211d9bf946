"""Both agents of the gate over the in-memory broker, fed as Faust would feed them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.customers import CustomerList
from runtime.embodiments import RobotTypes
from runtime.kafka import Record
from runtime.metrics import Metrics
from schemas import headers as h
from schemas.headers import Source
from schemas.messages import (
    ActionMatrix,
    Completion,
    Control,
    Image,
    ImageEncoding,
    InferenceRequest,
    InferenceResult,
    Outcome,
)
from schemas.summary import summarize
from schemas.topics import OUTCOMES, REPLIES, REQUESTS, RESULTS, accepted_topic, declare
from stream_agents.action_agent import ActionAgent
from stream_agents.delivery import DeadLetters, Delivery
from stream_agents.fleet_limits import FleetLimits
from stream_agents.log_reader import LogReader
from stream_agents.replies import Origins
from stream_agents.request_agent import RequestAgent, circumstances_of
from stream_agents.request_table import RequestTable
from tests import pictures
from tests.cards import cards
from tests.counters import DictCounter
from tests.in_memory import InMemoryBroker

FLEET_TOPIC = "vla.requests.north.v1"
ACCEPTED = "vla.accepted.test-model-a.v1"

JPEG = pictures.jpeg()
FAR = 60_000


class LogInMemory(LogReader):
    """Reads records back from the in-memory broker."""

    def __init__(self, broker: InMemoryBroker) -> None:
        self._broker = broker

    async def read(self, topic: str, partition: int, offsets: range) -> list[Record]:
        return [r for r in self._broker.records(topic) if r.partition == partition and r.offset in offsets]


@dataclass
class Answer:
    outcome: Outcome
    headers: dict[str, str]


class GateBench:
    """Feeds what lies in the topics to the agents, as Faust would; `crash` forgets what the table did not keep."""

    def __init__(self, **settings: Any) -> None:
        self.broker = InMemoryBroker()
        for topic in declare(
            fleets=["north"],
            deployments=["test-model-a", "test-model-b"],
            partitions=2,
            accepted_partitions=2,
            reply_partitions=4,
        ):
            self.broker.create_topic(topic.name, topic.partitions)
        self.publisher = self.broker.publisher()
        self.metrics = Metrics()
        self.store: dict[bytes, bytes] = {}
        self.stop: Control | None = None
        self.live = True
        #: Of the installation; `weights` deals a model's robots to its deployments, where it names the model.
        self.cards = settings.pop("cards", None) or cards()
        self.weights: dict[str, dict[str, float]] = {}
        self.customers = CustomerList()
        self.counter = DictCounter()
        #: Customer -> consent tier.
        self.tiers: dict[str, str] = {}
        self.robots = RobotTypes(self.cards)
        self.settings = settings
        self.seen: dict[str, int] = {}
        self.start()

    def start(self) -> None:
        self.table = RequestTable(self.store, self.settings.get("dedup_window_ms", 300_000))
        self.table.restore({0, 1})
        delivery = Delivery(self.publisher, self.metrics)
        dead_letters = DeadLetters(delivery, self.metrics, group="vla-gate")
        origins = Origins(("north",), reply_partitions=4)
        self.requests = RequestAgent(
            table=self.table,
            origins=origins,
            delivery=delivery,
            dead_letters=dead_letters,
            log_reader=LogInMemory(self.broker),
            circumstances=circumstances_of(
                robots=self.robots,
                has_live_worker=lambda deployment: self.live,
                stop_of=self.stop_of,
                max_ttl_ms=60_000,
                weights_of=lambda model: self.weights.get(model),
            ),
            default_ttl_ms=FAR,
            max_ttl_ms=FAR,
            limits=FleetLimits(self.customers, self.counter, origins.is_fleet, self.metrics),
            tier_of=lambda customer_id: self.tiers.get(customer_id, "none"),
            metrics=self.metrics,
        )
        self.actions = ActionAgent(
            table=self.table,
            robots=self.robots,
            delivery=delivery,
            dead_letters=dead_letters,
            stop_of=self.stop_of,
            min_safety_score=0.7,
            metrics=self.metrics,
        )

    def stop_of(self, customer_id: str, robot_id: str, model: str) -> Control | None:
        return self.stop

    def put(self, value: bytes, headers: dict[str, str | int], topic: str = REQUESTS, partition: int = 0) -> None:
        self.publisher.publish(topic, value, key=b"arm-1", headers=h.encode(headers), partition=partition)

    def ask(
        self,
        request: InferenceRequest,
        *,
        topic: str = REQUESTS,
        correlation_id: str = "c1",
        **forged: str,
    ) -> None:
        headers: dict[str, str | int] = {
            h.CORRELATION_ID: correlation_id,
            h.REPLY_TOPIC: REPLIES,
            h.REPLY_PARTITION: 3,
            h.CUSTOMER_ID: "customer",
            **forged,
        }
        self.put(request.SerializeToString(), headers, topic)

    async def step(self, *topics: str) -> None:
        """Hand over every record that has not been handed over yet."""
        for topic in topics or (REQUESTS, FLEET_TOPIC, RESULTS):
            records = self.broker.records(topic)
            for record in records[self.seen.get(topic, 0) :]:
                await (self.actions if topic == RESULTS else self.requests).handle(record)
            self.seen[topic] = len(records)

    async def redeliver(self, topic: str) -> None:
        self.seen[topic] = 0
        await self.step(topic)

    def infer(self, values: np.ndarray | None = None, deployment: str = "test-model-a") -> None:
        """Play a deployment's GPU worker for every accepted record that it has not seen."""
        topic = accepted_topic(deployment)
        records = self.broker.records(topic)
        for record in records[self.seen.get(topic, 0) :]:
            headers = record.headers
            request = InferenceRequest.FromString(record.value or b"")
            source = Source.parse(headers[h.SOURCE])
            chunk = values if values is not None else np.full((4, 3), [0.01, 0.0, 0.0], np.float32)
            completion = Completion(
                row_id=headers[h.ROW_ID],
                request=summarize(
                    request,
                    customer_id=headers[h.CUSTOMER_ID],
                    consent_tier=headers[h.CONSENT_TIER],
                    requested_at_ms=int(headers[h.REQUESTED_AT_MS]),
                    deadline_ms=int(headers[h.DEADLINE_MS]),
                    source=source,
                ),
                result=InferenceResult(
                    chunk=ActionMatrix(horizon=chunk.shape[0], dim=chunk.shape[1], values=chunk.ravel().tolist()),
                    deployment=deployment,
                ),
            )
            self.put(completion.SerializeToString(), {}, RESULTS, source.partition)
        self.seen[topic] = len(records)

    def answers(self, topic: str = REPLIES) -> list[Answer]:
        return [Answer(Outcome.FromString(r.value or b""), r.headers) for r in self.broker.records(topic)]

    def outcomes(self) -> list[Outcome]:
        return [Outcome.FromString(r.value or b"") for r in self.broker.records(OUTCOMES)]


def request(**changes: Any) -> InferenceRequest:
    fields: dict[str, Any] = {
        "request_id": str(uuid.uuid4()),
        "robot_id": "arm-1",
        "robot_type": "test_arm",
        "instruction": "pick up the red block",
        "images": [Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=JPEG)],
        "state": [0.5, 0.5],
        "ttl_ms": FAR,
    }
    return InferenceRequest(**{**fields, **changes})


async def answered(bench: GateBench, asked: InferenceRequest, **how: Any) -> None:
    bench.ask(asked, **how)
    await bench.step(REQUESTS, FLEET_TOPIC)
    bench.infer()
    await bench.step(RESULTS)
