"""Both sinks as processes over a real Kafka: killed, stopped and started again, the books balance."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

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
from tests import cards
from tests import factories as f
from tests.embedded import running

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
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
    for folder, card in (("models", cards.model()), ("embodiments", cards.embodiment())):
        (tmp_path / "cards" / folder).mkdir(parents=True)
        text = yaml.safe_dump(card.model_dump(mode="json", exclude={"path"}))
        (tmp_path / "cards" / folder / "card.yaml").write_text(text)
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
        "CARDS_DIR": str(tmp_path / "cards"),
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


class Role:
    """One sink as a process of its own."""

    def __init__(self, sink: str, environment: dict[str, str], log: Path) -> None:
        self._sink = sink
        self._log = log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._environment = {**os.environ, **environment, "METRICS_PORT": str(self._port), "PYTHONPATH": str(ROOT)}
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "runtime.cli", "sink", self._sink]
            return subprocess.Popen(command, env=self._environment, cwd=self._log.parent, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2) as answer:
                    return bool(json.load(answer)["status"] == "ready")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        wait_for(ready)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process = self._spawn()

    def freeze(self) -> None:
        """It stops where it is, and will not notice that its group has given its partitions away."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=30)

    def restart(self) -> None:
        assert self.stop() == 0, self._log.read_text()
        self._process = self._spawn()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.05)


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
