"""The embedder as a process over a real Kafka and Valkey, with the packaged MiniLM and the demo's vision tower."""

from __future__ import annotations

import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confluent_kafka import TopicPartition

from runtime.kafka import build_consumer, build_producer
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout
from runtime.topic_admin import apply_topics
from schemas import headers as h
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM
from schemas.messages import Consent, Embedding, EmbeddingQuery
from schemas.topics import CONSENT, EMBEDDINGS, QUERIES, REPLIES, REQUESTS, accepted_topic
from tests import factories as f
from tests.cards import write_cards
from tests.embedded import running
from tests.sink_process import ROOT, Role, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(240)]

DEPLOYMENT = "test-model-a"
TOWER = ROOT / "examples" / "tabletop" / "vision_tower"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embedder")


@pytest.fixture(scope="module")
def environment(folder: Path, valkey_url: str) -> Iterator[dict[str, str]]:
    layout = Layout(folder / "stack")
    layout.create()
    server = Kafka(layout)
    with running(server, layout):
        yield {
            "KAFKA_BOOTSTRAP_SERVERS": server.bootstrap,
            "KAFKA_PARTITIONS": "1",
            "KAFKA_ACCEPTED_PARTITIONS": "1",
            "KAFKA_SESSION_TIMEOUT_MS": "3000",
            "REDIS_URL": valkey_url,
            "IMAGE_EMBEDDING_MODEL": str(TOWER),
            "CARDS_DIR": str(write_cards(folder / "cards")),
            "LOG_FORMAT": "text",
            "OMP_NUM_THREADS": "1",
        }


@pytest.fixture(scope="module")
def settings(environment: dict[str, str]) -> Settings:
    values: dict[str, Any] = {name.lower(): value for name, value in environment.items()}
    found = Settings(_env_file=None, **values)
    apply_topics(found)
    return found


@pytest.fixture(scope="module")
def embedder(settings: Settings, environment: dict[str, str], folder: Path) -> Iterator[Role]:
    role = Role("embedder", environment, folder / "embedder.log", ("embedder",))
    role.wait_ready()
    yield role
    assert role.stop() == 0, (folder / "embedder.log").read_text()


@pytest.fixture(scope="module")
def gate(settings: Settings) -> Iterator[Gate]:
    made = Gate(settings)
    for customer in (f.CUSTOMER, "customer-2"):
        made.allow(customer, "full")
    yield made
    made.publisher.close(5)


@pytest.fixture
def log(settings: Settings) -> Iterator[Log]:
    opened = Log(settings, EMBEDDINGS)
    yield opened
    opened.close()


class Log:
    """Everything that stands in one partition, read as it comes."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self.values: list[tuple[dict[str, str], bytes]] = []
        self._consumer = build_consumer(settings, f"log-{topic}", group=None)
        self._consumer.assign([TopicPartition(topic, 0, 0)])
        self._stop = threading.Event()
        # A daemon, so that a test that fails before it stops it does not keep pytest alive.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(0.1)
            if message is not None and message.error() is None:
                raw: Any = message.headers() or []
                self.values.append((h.decode(raw), message.value() or b""))

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._consumer.close()


class Gate:
    """Writes accepted requests as the gate does."""

    def __init__(self, settings: Settings) -> None:
        self.publisher = Publisher(build_producer(settings, "gate"), Metrics())
        self._offset = 0

    def accept(self, instruction: str, *, tier: str = "full", picture: int = 0, customer: str = f.CUSTOMER) -> str:
        request = f.inference_request(instruction=instruction)
        request.images[0].data = f.jpeg(64, 64, picture)
        row = str(uuid.uuid4())
        headers = f.accepted_headers(
            {
                h.ROW_ID: row,
                h.CUSTOMER_ID: customer,
                h.CONSENT_TIER: tier,
                h.SOURCE: f"{REQUESTS}/0/{self._offset}",
                h.REQUESTED_AT_MS: int(time.time() * 1000),
            }
        )
        self._offset += 1
        self.publisher.publish(
            accepted_topic(DEPLOYMENT),
            request.SerializeToString(),
            key=request.robot_id.encode(),
            headers=h.encode(headers),
            partition=0,
        )
        return row

    def allow(self, customer: str, tier: str) -> None:
        said = Consent(customer_id=customer, tier=tier, version=1, who="test", at_ms=1)
        self.publisher.publish(CONSENT, said.SerializeToString(), key=customer.encode())


def vectors(log: Log) -> dict[str, Embedding]:
    """Row id -> what was published of it."""
    found = [Embedding.FromString(value) for _, value in list(log.values) if value]
    return {each.row_id: each for each in found}


def cache_hits(port_url: str) -> float:
    with urllib.request.urlopen(port_url, timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith('vla_embedding_cache_total{result="hit"}'))


def test_consented_requests_get_vectors_once_computed_and_nobody_else_does(
    gate: Gate, embedder: Role, log: Log
) -> None:
    first = gate.accept("pick up the red block")
    wait_for(lambda: first in vectors(log))
    again = gate.accept("pick up the red block")
    like_it = gate.accept("grasp the red cube", picture=1)
    other = gate.accept("wipe the kitchen table", picture=20)
    silent = gate.accept("tell nobody", tier="none")
    last = gate.accept("put it down")
    wait_for(lambda: {again, like_it, other, last} <= vectors(log).keys())
    found = vectors(log)
    assert silent not in found
    assert len(found[first].instruction) == INSTRUCTION_EMBEDDING_DIM
    assert len(found[first].image) == IMAGE_EMBEDDING_DIM
    assert found[first].image_model == "vlastream/demo-vision-tower"
    assert np.linalg.norm(found[first].instruction) == pytest.approx(1, abs=1e-3)
    assert list(found[again].instruction) == pytest.approx(list(found[first].instruction), abs=1e-3)
    near = np.dot(found[first].instruction, found[like_it].instruction)
    far = np.dot(found[first].instruction, found[other].instruction)
    assert near > far + 0.1

    def both_are_known() -> bool:
        before = cache_hits(embedder.metrics_url)
        row = gate.accept("pick up the red block")
        wait_for(lambda: row in vectors(log))
        return cache_hits(embedder.metrics_url) >= before + 2

    # The same words and pixels of the same customer are not computed again. A cache that was slow once is left alone
    # for some seconds.
    wait_for(both_are_known)


def test_a_question_is_answered_at_the_address_that_it_names(gate: Gate, embedder: Role, settings: Settings) -> None:
    replies = Log(settings, REPLIES)
    asking: dict[str, str | int] = {
        h.REPLY_TOPIC: REPLIES,
        h.REPLY_PARTITION: 0,
        h.CORRELATION_ID: "question-1",
        h.CUSTOMER_ID: "c",
    }
    query = EmbeddingQuery(text="pick something up")
    gate.publisher.publish(QUERIES, query.SerializeToString(), headers=h.encode(asking), partition=0)

    def answers() -> list[bytes]:
        return [value for headers, value in list(replies.values) if headers.get(h.CORRELATION_ID) == "question-1"]

    try:
        wait_for(lambda: bool(answers()))
        assert len(Embedding.FromString(answers()[0]).instruction) == INSTRUCTION_EMBEDDING_DIM
    finally:
        replies.close()


def test_a_killed_embedder_loses_no_request(gate: Gate, embedder: Role, log: Log) -> None:
    before = len(vectors(log))
    rows = {gate.accept(f"pick up block number {number}", picture=number) for number in range(40)}
    wait_for(lambda: len(vectors(log)) > before + 3)
    embedder.kill()
    rows |= {gate.accept(f"push block number {number}", picture=number) for number in range(10)}
    wait_for(lambda: rows <= vectors(log).keys(), timeout_s=120)
    embedder.wait_ready()
