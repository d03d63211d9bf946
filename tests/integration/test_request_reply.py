"""Request-reply over a real broker, with a responder in the pipeline's place: in process, and as `vlastream api`."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from ingest_api.gateway import KafkaGateway, NoReply, Question
from ingest_api.replies import Build, Reply
from ingest_api.tenancy_commands import create_key
from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_consumer, build_producer, end_positions
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout, free_port
from runtime.topic_admin import apply_topics
from schemas import headers as h
from schemas.messages import InferenceRequest, Outcome, WorkerHeartbeat
from schemas.topics import REQUESTS, WORKERS
from sinks.migrate import upgrade
from tests.api_processes import ApiProcess, api_processes
from tests.cards import model, write_cards
from tests.embedded import RunningServer, running
from tests.unit.api_case import body, chunk_outcome

pytestmark = pytest.mark.kafka

#: Robots with this name get no answer until the responder is told to.
SILENT = "silent-arm"


@contextmanager
def broker(folder: Path, *, fleets: str = "") -> Iterator[tuple[RunningServer, Settings]]:
    """A Kafka of one's own with all topics."""
    layout = Layout(folder / "servers")
    layout.create()
    kafka = Kafka(layout)
    with running(kafka, layout) as server:
        folders = {"cards_dir": write_cards(folder / "cards"), "stack_file": folder / "no-stack.json"}
        settings = Settings.model_validate({"kafka_bootstrap_servers": kafka.bootstrap, "fleets": fleets, **folders})
        apply_topics(settings)
        yield server, settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    with broker(tmp_path_factory.mktemp("request-reply")) as (_, settings):
        yield settings


class Responder:
    """The rest of the pipeline: answers each request with actions, and beats for the one worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stop = threading.Event()
        self._listening = threading.Event()
        self.speak = threading.Event()
        self.seen: list[tuple[InferenceRequest, dict[str, str]]] = []
        # Daemons, so that a test that fails before it stops them does not keep pytest alive.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._answer, self._beat)]

    def __enter__(self) -> Responder:
        for thread in self._threads:
            thread.start()
        assert self._listening.wait(60), "the responder found no topic"
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _answer(self) -> None:
        producer = build_producer(self._settings, "responder")
        consumer = build_consumer(self._settings, "responder", group=None)
        ends = _ends(consumer)
        consumer.assign([TopicPartition(REQUESTS, partition, end) for partition, end in ends.items()])
        self._listening.set()
        held: list[tuple[InferenceRequest, dict[str, str]]] = []
        while not self._stop.is_set():
            message = consumer.poll(0.02)
            if message is not None and message.error() is None:
                request = InferenceRequest.FromString(message.value() or b"")
                headers = h.decode(message.headers())  # type: ignore[arg-type] # the stub lacks bytes
                self.seen.append((request, headers))
                held.append((request, headers))
            ready = [case for case in held if case[0].robot_id != SILENT or self.speak.is_set()]
            held = [case for case in held if case not in ready]
            for request, headers in ready:
                producer.produce(
                    headers[h.REPLY_TOPIC],
                    chunk_outcome(request).SerializeToString(),
                    key=request.robot_id,
                    headers=list(h.encode({h.CORRELATION_ID: headers[h.CORRELATION_ID], h.REPLAYED: "false"})),
                    partition=int(headers[h.REPLY_PARTITION]),
                )
            producer.poll(0)
        producer.flush(10)
        consumer.close()

    def _beat(self) -> None:
        producer = build_producer(self._settings, "responder-beat")
        card = model()
        beat = WorkerHeartbeat(worker_id="w", deployment=card.deployment, model=card.model, device="cpu")
        while True:
            producer.produce(WORKERS, beat.SerializeToString(), key=b"w")
            producer.flush(5)
            if self._stop.wait(0.5):
                return


def _ends(consumer: Consumer, timeout_s: float = 60.0) -> dict[int, int]:
    """End of each partition of the requests. Topics that were just made may be unknown yet, or without a leader."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            return end_positions(consumer, REQUESTS)
        except (Fatal, Unavailable, KafkaException):
            if time.monotonic() >= end:
                raise
            time.sleep(0.1)


def fail(error: BaseException) -> None:
    raise AssertionError("the reply reader failed") from error


def reply_consumer(settings: Settings) -> Build:
    def build(on_error: Callable[[KafkaError], None]) -> Consumer:
        return build_consumer(settings, "test-replies", group=None, on_error=on_error)

    return build


@asynccontextmanager
async def gateway(settings: Settings, partition: int) -> AsyncIterator[tuple[KafkaGateway, Metrics]]:
    metrics = Metrics()
    publisher = Publisher(build_producer(settings, f"test-{partition}"), metrics)
    opened = KafkaGateway(
        publisher=publisher,
        build_consumer=reply_consumer(settings),
        partition=partition,
        capacity=500,
        metrics=metrics,
        on_failure=fail,
    )
    try:
        await asyncio.to_thread(opened.open, asyncio.get_running_loop(), 30.0)
        yield opened, metrics
    finally:
        await asyncio.to_thread(opened.close, Deadline(10))
        await asyncio.to_thread(publisher.close, 5)


def question(robot_id: str, request_id: str) -> Question:
    request = InferenceRequest(request_id=request_id, robot_id=robot_id, robot_type="test_arm", model="test-model")
    return Question(
        value=request.SerializeToString(), robot_id=robot_id.encode(), request_id=request_id, customer_id="c"
    )


def answered(reply: Reply) -> str:
    return Outcome.FromString(reply.value).request.request_id


async def test_every_request_gets_its_own_reply_also_where_two_processes_share_a_partition(settings: Settings) -> None:
    with Responder(settings):
        async with gateway(settings, 3) as (one, one_metrics), gateway(settings, 3) as (two, two_metrics):
            names = [f"r-{number}" for number in range(100)]
            asked = [(name, door.ask(question(f"arm-{name}", name), 30)) for name in names for door in (one, two)]
            for name, future in asked:
                assert answered(await future) == name
    late = [metrics.registry.get_sample_value("vla_late_replies_total") for metrics in (one_metrics, two_metrics)]
    # Each saw the hundred of the other, up to those that came after it had what it waited for.
    assert all(count is not None and count <= 100 for count in late)
    assert sum(count or 0 for count in late) >= 100


async def test_a_reply_after_the_wait_is_counted_and_harms_nobody(settings: Settings) -> None:
    with Responder(settings) as responder:
        async with gateway(settings, 4) as (door, metrics):
            with pytest.raises(NoReply) as caught:
                await door.ask(question(SILENT, "late"), 5.0)
            assert caught.value.acknowledged
            responder.speak.set()
            assert answered(await door.ask(question(SILENT, "next"), 30)) == "next"
            assert metrics.registry.get_sample_value("vla_late_replies_total") == 1


async def test_without_a_broker_there_is_no_ready_gateway(settings: Settings) -> None:
    away = settings.model_copy(update={"kafka_bootstrap_servers": f"127.0.0.1:{free_port()}"})
    metrics = Metrics()
    publisher = Publisher(build_producer(away, "away"), metrics)
    door = KafkaGateway(
        publisher=publisher,
        build_consumer=reply_consumer(away),
        partition=0,
        capacity=1,
        metrics=metrics,
        on_failure=fail,
    )
    with pytest.raises(Unavailable, match="could not be found"):
        await asyncio.to_thread(door.open, asyncio.get_running_loop(), 0.5)
    assert door.waiting_for == ["reply path"]
    with pytest.raises(Unavailable, match="reply path"):
        door.ask(question("arm", "r"), 1)
    await asyncio.to_thread(door.close, Deadline(10))
    await asyncio.to_thread(publisher.close, 0)


@pytest.mark.slow
async def test_the_gateway_knows_that_the_broker_is_gone_and_comes_back_with_it(tmp_path: Path) -> None:
    with broker(tmp_path) as (server, settings), Responder(settings):
        async with gateway(settings, 0) as (door, _):
            assert answered(await door.ask(question("arm", "before"), 30)) == "before"
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(_poll, lambda: door.waiting_for == ["kafka"])
            with pytest.raises(Unavailable):
                door.ask(question("arm", "meanwhile"), 30)
            await asyncio.to_thread(server.start)
            await asyncio.to_thread(_poll, lambda: door.waiting_for == [])
            assert answered(await door.ask(question("arm", "after"), 30)) == "after"


def _poll(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "this did not come true"
        time.sleep(0.02)


# --- as processes


@pytest.fixture
def apis(settings: Settings, fresh_database: str, valkey_url: str, tmp_path: Path) -> Iterator[list[ApiProcess]]:
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "CARDS_DIR": str(settings.cards_dir),
        "DATABASE_URL": fresh_database,
        "REDIS_URL": valkey_url,
        "STACK_FILE": str(tmp_path / "stack.json"),
        "DEFAULT_TTL_MS": "20000",
    }
    with api_processes(environment, tmp_path, 2) as processes:
        yield processes


@pytest.fixture
def key(fresh_database: str) -> str:
    settings = Settings.model_validate({"database_url": fresh_database})
    upgrade(settings)
    return create_key(settings, "robot@example.org", "pro")


def _is_available(client: httpx.Client, url: str) -> bool:
    return bool(client.get(f"{url}/v1/models/test-model").json()["available"])


def test_several_processes_serve_and_end_in_order(settings: Settings, apis: list[ApiProcess], key: str) -> None:
    headers = {"authorization": f"Bearer {key}"}
    with Responder(settings) as responder, httpx.Client(trust_env=False, headers=headers, timeout=30) as client:
        for api in apis:
            api.wait_ready()
        for number in range(10):
            for api in apis:
                robot_id = f"arm-{number}"
                # The first heartbeat may come after the API is ready.
                _poll(partial(_is_available, client, api.url))
                answer = client.post(f"{api.url}/v1/inference", json=body(robot_id=robot_id))
                assert answer.status_code == 200, answer.text
                assert answer.json()["robot_id"] == robot_id
        assert {headers[h.REPLY_PARTITION] for _, headers in responder.seen} == {"0", "1"}
        health = client.get(f"{apis[0].url}/health")
        assert health.json()["status"] == "ok", health.text
        assert client.get(f"{apis[0].url}/v1/monitoring/queue").json()["deployments"][0]["live_workers"] == 1

        # SIGTERM while a request waits: it gets its answer, then the process ends.
        waited: list[httpx.Response] = []
        waiting = threading.Thread(
            target=lambda: waited.append(client.post(f"{apis[0].url}/v1/inference", json=body(robot_id=SILENT)))
        )
        waiting.start()
        _poll(lambda: any(request.robot_id == SILENT for request, _ in responder.seen))
        apis[0].process.send_signal(signal.SIGTERM)
        _poll(lambda: "stopping on SIGTERM" in apis[0].log.read_text())
        responder.speak.set()
        waiting.join()
        assert waited[0].status_code == 200
        assert apis[0].process.wait(timeout=30) == 0
        assert client.get(f"{apis[1].url}/readyz").status_code == 200
