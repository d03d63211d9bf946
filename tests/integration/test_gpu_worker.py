"""The GPU worker as a process on real Kafka, with the deterministic policy: killed under load, and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import yaml
from confluent_kafka import Consumer, TopicPartition

from gpu_consumers.pipeline import group_of
from runtime.errors import EXIT_FATAL
from runtime.kafka import Record, build_consumer, build_producer, check_consumed, end_positions, record_of
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.topic_admin import apply_topics
from schemas import headers as h
from schemas.messages import Completion, InferenceRequest, WorkerHeartbeat
from schemas.topics import RESULTS, WORKERS, accepted_topic
from tests.accepted import headers_of, request
from tests.cards import embodiment, model
from tests.openpi_server import chunk_of, openpi_server

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(900)]

CARD = model(deployment="gpu-worker-test")
ACCEPTED = accepted_topic(CARD.deployment)
TIMEOUT_S = 120.0


@pytest.fixture
def settings(kafka_bootstrap: str, tmp_path: Path) -> Settings:
    cards = tmp_path / "cards"
    for folder, name, card in (("models", CARD.deployment, CARD), ("embodiments", "test_arm", embodiment())):
        (cards / folder).mkdir(parents=True)
        (cards / folder / f"{name}.yaml").write_text(yaml.safe_dump(card.model_dump(mode="json")))
    made = Settings(kafka_bootstrap_servers=kafka_bootstrap, cards_dir=cards, _env_file=None)
    apply_topics(made)
    return made


@pytest.fixture
def publisher(settings: Settings) -> Iterator[Publisher]:
    made = Publisher(build_producer(settings, "test-gate"), Metrics())
    yield made
    made.close(TIMEOUT_S)


class Follower:
    """Everything that is written to a topic from now on."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self.records: list[Record] = []
        self._consumer: Consumer = build_consumer(settings, f"follow-{topic}", group=None)
        ends = end_positions(self._consumer, topic)
        self._consumer.assign([TopicPartition(topic, number, end) for number, end in ends.items()])

    def until(self, condition: Callable[[], bool], failed: Callable[[], bool] = lambda: False) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not condition():
            assert not failed(), "the worker ended"
            assert time.monotonic() < end, f"{len(self.records)} records came"
            message = self._consumer.poll(0.1)
            if message is not None and check_consumed(message):
                self.records.append(record_of(message))

    def completions(self) -> list[Completion]:
        """Those of this test's deployment."""
        mine = [record for record in self.records if record.headers.get(h.CUSTOMER_ID) == CARD.deployment]
        return [Completion.FromString(record.value or b"") for record in mine]

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def following(settings: Settings, topic: str) -> Iterator[Follower]:
    follower = Follower(settings, topic)
    try:
        yield follower
    finally:
        follower.close()


class WorkerProcess:
    """`vlastream gpu` as an operator starts it, ready once its heartbeat is in the log."""

    def __init__(self, settings: Settings, *options: str, **environment: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from runtime.cli import main; main()", "gpu", *options],
            env={
                **os.environ,
                "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
                "CARDS_DIR": str(settings.cards_dir),
                "DEPLOYMENT": CARD.deployment,
                "LOG_FORMAT": "text",
                **environment,
            },
        )

    def wait_ready(self, heartbeats: Follower) -> None:
        heartbeats.until(
            lambda: any(self._is_mine(record) and record.value for record in heartbeats.records),
            failed=lambda: self._process.poll() is not None,
        )

    def wait_gone(self, heartbeats: Follower) -> None:
        """Until its tombstone is in the log."""
        heartbeats.until(lambda: any(self._is_mine(record) and not record.value for record in heartbeats.records))

    def end(self, number: signal.Signals) -> int:
        self._process.send_signal(number)
        return self._process.wait(TIMEOUT_S)

    def wait(self) -> int:
        return self._process.wait(TIMEOUT_S)

    def children(self) -> set[int]:
        """Process ids of the workers of a group."""
        return {child.pid for child in psutil.Process(self._process.pid).children()}

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _is_mine(self, record: Record) -> bool:
        return f"-{self._process.pid}-" in (record.key or b"").decode()


@contextmanager
def worker(settings: Settings, *options: str, **environment: str) -> Iterator[WorkerProcess]:
    process = WorkerProcess(settings, *options, **environment)
    try:
        yield process
    finally:
        process.close()


def send(publisher: Publisher, message: InferenceRequest, number: int) -> None:
    # No request is to expire while a worker starts on a slow machine.
    headers = headers_of(message, partition=number % 4, offset=number, ttl_s=600.0, customer=CARD.deployment)
    publisher.publish(ACCEPTED, message.SerializeToString(), key=message.robot_id.encode(), headers=h.encode(headers))


def committed(settings: Settings) -> int:
    """Sum of the group's committed offsets."""
    consumer = build_consumer(settings, "test-committed", group=group_of(CARD))
    try:
        partitions = [TopicPartition(ACCEPTED, number) for number in range(settings.kafka_accepted_partitions)]
        return sum(max(partition.offset, 0) for partition in consumer.committed(partitions, timeout=TIMEOUT_S))
    finally:
        consumer.close()


def test_a_worker_killed_under_load_and_started_again_answers_everything(
    settings: Settings, publisher: Publisher
) -> None:
    count = 600
    ids = [f"kill-{number}" for number in range(count)]
    with following(settings, RESULTS) as results, following(settings, WORKERS) as heartbeats:
        with worker(settings) as first:
            first.wait_ready(heartbeats)
            for number in range(count // 2):
                send(publisher, request(ids[number], robot=f"robot-{number % 9}"), number)
            results.until(lambda: len(results.completions()) >= 50)
            first.end(signal.SIGKILL)
        for number in range(count // 2, count):
            send(publisher, request(ids[number], robot=f"robot-{number % 9}"), number)
        with worker(settings) as second:
            second.wait_ready(heartbeats)
            results.until(lambda: {c.request.request_id for c in results.completions()} == set(ids))
            assert second.end(signal.SIGTERM) == 0
            second.wait_gone(heartbeats)
        done = results.completions()
    assert committed(settings) == count
    assert {completion.WhichOneof("kind") for completion in done} == {"result"}
    # A request that was answered twice was answered the same.
    chunks: dict[str, set[bytes]] = {}
    for completion in done:
        chunks.setdefault(completion.request.request_id, set()).add(completion.result.chunk.SerializeToString())
        assert completion.result.deployment == CARD.deployment
    assert all(len(different) == 1 for different in chunks.values())


def test_heartbeats_name_the_deployment(settings: Settings) -> None:
    with following(settings, WORKERS) as heartbeats, worker(settings) as process:
        process.wait_ready(heartbeats)
        beat = WorkerHeartbeat.FromString(next(r.value for r in heartbeats.records if r.value))
        assert (beat.deployment, beat.model, beat.max_batch) == (CARD.deployment, CARD.model, 16)
        assert process.end(signal.SIGTERM) == 0


def test_an_unknown_deployment_ends_the_process_with_the_names_that_there_are(
    settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    with worker(settings, DEPLOYMENT="no-such") as process:
        assert process.wait() == EXIT_FATAL
    assert "gpu-worker-test" in capfd.readouterr().err


def test_a_group_of_workers_replaces_one_that_is_killed_and_drains_as_a_whole(
    settings: Settings, publisher: Publisher
) -> None:
    """On a host without a GPU the group is of CPU workers; the same supervision as with one each."""

    def of(pid: int, record: Record) -> bool:
        return f"-{pid}-" in (record.key or b"").decode()

    def served(pids: set[int]) -> bool:
        return all(any(of(pid, record) and record.value for record in heartbeats.records) for pid in pids)

    nowhere = {"CUDA_VISIBLE_DEVICES": "", "INFERENCE_MAX_WORKERS": "2"}
    with (
        following(settings, RESULTS) as results,
        following(settings, WORKERS) as heartbeats,
        worker(settings, "--all", **nowhere) as group,
    ):
        heartbeats.until(lambda: len(group.children()) == 2 and served(group.children()))
        first = group.children()
        for number in range(40):
            send(publisher, request(f"group-{number}", robot=f"robot-{number}"), number)
        os.kill(min(first), signal.SIGKILL)
        heartbeats.until(lambda: len(group.children() - first) == 1 and served(group.children()))
        results.until(
            lambda: {c.request.request_id for c in results.completions()} >= {f"group-{n}" for n in range(40)}
        )
        last = group.children()
        assert group.end(signal.SIGTERM) == 0
        heartbeats.until(
            lambda: all(any(of(pid, record) and not record.value for record in heartbeats.records) for pid in last)
        )
    assert not any(psutil.pid_exists(pid) for pid in first | last)


def test_requests_wait_for_a_remote_policys_server_that_is_away(settings: Settings, publisher: Publisher) -> None:
    with openpi_server(chunk_of(CARD.horizon, CARD.action_dim)) as server:
        config = {"url": server.url, "images": {"base": "image"}, "state": {"state": (0, CARD.state_dim)}}
        remote = CARD.model_copy(update={"policy": "openpi_remote", "policy_config": config})
        card_file = settings.cards_dir / "models" / f"{CARD.deployment}.yaml"
        card_file.write_text(yaml.safe_dump(remote.model_dump(mode="json")))
        with (
            following(settings, RESULTS) as results,
            following(settings, WORKERS) as heartbeats,
            worker(settings) as process,
        ):
            process.wait_ready(heartbeats)
            server.stop()
            for number in range(8):
                send(publisher, request(f"remote-{number}", robot=f"robot-{number}"), number)
            process.wait_gone(heartbeats)
            heartbeats.records.clear()
            server.start()
            process.wait_ready(heartbeats)
            results.until(
                lambda: {c.request.request_id for c in results.completions()} >= {f"remote-{n}" for n in range(8)}
            )
            mine = [c for c in results.completions() if c.request.request_id.startswith("remote-")]
            assert {completion.WhichOneof("kind") for completion in mine} == {"result"}
            assert process.end(signal.SIGTERM) == 0
