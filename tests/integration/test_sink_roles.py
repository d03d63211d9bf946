"""Both sinks as processes over a real Kafka: killed, stopped and started again, the books balance."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.kafka import build_producer
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout
from runtime.stack.s3 import S3Settings
from runtime.topic_admin import apply_topics
from schemas import headers as h
from schemas.ids import row_id
from schemas.messages import SourceRecord
from schemas.topics import OUTCOMES, REQUESTS, accepted_topic, requests_topic
from sinks.books import read_books
from sinks.migrate import upgrade
from tests import factories as f
from tests.cards import write_cards
from tests.embedded import running
from tests.sink_process import Role

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

FLEET = "fleet-a"
PARTITIONS = 2
DEPLOYMENT = "test-model-a"


@pytest.fixture
def kafka(own_layout: Layout) -> Iterator[str]:
    """A Kafka of this test's own, because the roles' topics have fixed names."""
    server = Kafka(own_layout)
    with running(server, own_layout):
        yield server.bootstrap


@pytest.fixture
def environment(kafka: str, fresh_database: str, s3_settings: S3Settings, tmp_path: Path) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "KAFKA_PARTITIONS": str(PARTITIONS),
        "KAFKA_ACCEPTED_PARTITIONS": str(PARTITIONS),
        "KAFKA_SESSION_TIMEOUT_MS": "3000",
        "DATABASE_URL": fresh_database,
        "S3_ENDPOINT": s3_settings.endpoint,
        "S3_ACCESS_KEY": s3_settings.access_key,
        "S3_SECRET_KEY": s3_settings.secret_key,
        "S3_BUCKET": f"roles-{uuid.uuid4().hex[:12]}",
        "FLEETS": FLEET,
        "CARDS_DIR": str(write_cards(tmp_path / "cards")),
        "PARQUET_FLUSH_INTERVAL_S": "0.5",
        "SINK_FLUSH_INTERVAL_S": "0.1",
        "LOG_FORMAT": "text",
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    values: dict[str, Any] = {name.lower(): value for name, value in environment.items()}
    settings = Settings(_env_file=None, **values)
    upgrade(settings)
    apply_topics(settings)
    return settings


class Traffic:
    """Requests, accepted observations and outcomes, as robots, gate and workers would write them."""

    def __init__(self, settings: Settings) -> None:
        self._publisher = Publisher(build_producer(settings, "traffic"), Metrics())
        self._results = [0] * PARTITIONS
        self._sources = [0] * PARTITIONS
        self._written: list[tuple[int, bytes]] = []
        self.requests = 0

    def close(self) -> None:
        self._publisher.close(10)

    def step(self, number: int) -> None:
        for index in range(number):
            self._request(self.requests + index)
        self.requests += number
        assert self._publisher.flush(20) == 0

    def repeat_last_outcomes(self, number: int) -> None:
        """What a gate does that starts again before its last commit."""
        for partition, value in self._written[-number:]:
            self._publisher.publish(OUTCOMES, value, key=b"r", partition=partition)
        assert self._publisher.flush(20) == 0

    def _request(self, index: int) -> None:
        partition = index % PARTITIONS
        topic, customer = (requests_topic(FLEET), FLEET) if index % 3 == 0 else (REQUESTS, f.CUSTOMER)
        request = f.inference_request(robot_id=f"robot-{index % 5}", step=index)
        value = request.SerializeToString()
        headers = h.encode({h.CUSTOMER_ID: customer})
        self._publisher.publish(topic, value, key=request.robot_id.encode(), headers=headers, partition=partition)
        source = h.Source(topic, partition, self._sources[partition])
        self._sources[partition] += 1
        row = row_id(customer, request.robot_id, request.request_id, source)
        accepted = {h.ROW_ID: row, h.SOURCE: str(source), h.CUSTOMER_ID: customer}
        self._publisher.publish(
            accepted_topic(DEPLOYMENT), value, headers=h.encode(f.accepted_headers({**accepted})), partition=partition
        )
        summary = f.request_summary(
            request_id=request.request_id,
            robot_id=request.robot_id,
            customer_id=customer,
            source=SourceRecord(topic=topic, partition=partition, offset=source.offset),
        )
        refused = {"rejection": f.rejection()} if index % 7 == 0 else {}
        outcome = f.outcome(row_id=row, request=summary, results_offset=self._results[partition], **refused)
        self._results[partition] += 2
        self._written.append((partition, outcome.SerializeToString()))
        self._publisher.publish(OUTCOMES, self._written[-1][1], key=b"r", partition=partition)


@pytest.mark.timeout(240)
def test_killed_restarted_and_frozen_sinks_leave_the_books_balanced(
    settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    traffic = Traffic(settings)
    logs = [tmp_path / f"{sink}.log" for sink in ("postgres", "parquet")]
    roles = [Role(log.stem, environment, log) for log in logs]
    twins: list[Role] = []
    try:
        traffic.step(60)
        for role in roles:
            role.wait_ready()
        for _ in range(2):
            traffic.step(60)
            for role in roles:
                role.kill()
            traffic.repeat_last_outcomes(40)
            traffic.step(60)
            for role in roles:
                role.wait_ready()
        for role in roles:
            role.restart()
        traffic.step(60)
        for role in roles:
            role.wait_ready()
            role.freeze()
        traffic.step(60)
        twins.extend(Role(log.stem, environment, log) for log in logs)
        for twin in twins:
            twin.wait_ready()
        traffic.step(60)
        for role in roles:
            role.thaw()
        traffic.step(60)
        books = read_books(settings, wait_s=60)
    finally:
        for role in roles:
            role.thaw()
        statuses = [role.stop() for role in (*roles, *twins)]
        traffic.close()
    said = "\n".join(log.read_text() for log in logs)
    assert books.balanced, f"{books.explain()}\n{said}"
    assert (books.requests, books.repeated_outcomes) == (traffic.requests, 80)
    assert statuses == [0, 0, 0, 0], said
    assert "offset_gap" not in said
    assert not read_books(settings).undecodable
