"""KafkaTransport against a real broker, with a responder in the pipeline's place."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from robot_client import ActionChunk, AsyncRobotClient, Late, Refused, RetryRule, Unreachable
from robot_client.kafka import KafkaTransport
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout
from schemas import headers as h
from schemas.ids import partition_of
from schemas.messages import InferenceRequest, Outcome, Rejection, RequestSummary
from schemas.topics import MAX_MESSAGE_BYTES, replies_topic, requests_topic
from tests.embedded import running
from tests.unit.robot_client_case import observation, outcome

pytestmark = pytest.mark.kafka
PARTITIONS = 4

#: What the responder answers to a request; None: nothing.
Answer = Callable[[InferenceRequest], Outcome | None]


def acts(request: InferenceRequest) -> Outcome:
    return outcome(request.request_id)


class Responder:
    """Reads every partition of a fleet's requests, and answers as the gate addresses fleets."""

    def __init__(self, bootstrap: str, fleet: str, answer: Answer) -> None:
        self._answer = answer
        self._replies = replies_topic(fleet)
        self._producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
        self._consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": f"responder-{fleet}"})
        self._consumer.assign([TopicPartition(requests_topic(fleet), p, 0) for p in range(PARTITIONS)])
        self._stop = threading.Event()
        # A daemon, so that a test that fails before it stops it does not keep pytest alive.
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.seen: list[tuple[bytes | None, int | None, bytes, dict[str, str]]] = []
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._producer.flush(5)
        self._consumer.close()

    def _serve(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(0.05)
            if message is None or message.error() is not None:
                continue
            value = message.value() or b""
            request = InferenceRequest.FromString(value)
            headers = h.decode(message.headers())  # type: ignore[arg-type] # the stub says str
            self.seen.append((message.key(), message.partition(), value, headers))
            answer = self._answer(request)
            if answer is not None:
                self._producer.produce(
                    self._replies,
                    value=answer.SerializeToString(),
                    key=message.key(),
                    partition=message.partition() or 0,
                    headers=list(h.encode({h.CORRELATION_ID: headers[h.CORRELATION_ID]})),
                )
                self._producer.poll(0)


@pytest.fixture
def fleet(kafka_bootstrap: str) -> str:
    return create_fleet(kafka_bootstrap)


def create_fleet(bootstrap: str) -> str:
    """Topics of a new fleet; returns its name."""
    name = f"test-{uuid.uuid4().hex[:12]}"
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topics = [NewTopic(topic, PARTITIONS, 1) for topic in (requests_topic(name), replies_topic(name))]
    for created in admin.create_topics(topics).values():
        created.result(20)
    return name


@contextmanager
def responding(bootstrap: str, fleet: str, answer: Answer = acts) -> Iterator[Responder]:
    responder = Responder(bootstrap, fleet, answer)
    try:
        yield responder
    finally:
        responder.close()


def robot(
    bootstrap: str, fleet: str, robot_id: str, lifetime_ms: int = 20_000, retry: RetryRule | None = None
) -> AsyncRobotClient:
    transport = KafkaTransport(bootstrap, fleet=fleet, robot_id=robot_id, frame_lifetime_ms=lifetime_ms)
    return AsyncRobotClient(transport, robot_id=robot_id, robot_type="tabletop_arm", retry=retry)


async def test_each_robot_gets_its_own_actions_from_its_own_partition(kafka_bootstrap: str, fleet: str) -> None:
    names = [f"arm-{number}" for number in range(6)]
    assert len({partition_of(name.encode(), PARTITIONS) for name in names}) > 1
    with responding(kafka_bootstrap, fleet) as responder:
        for name in names:
            async with robot(kafka_bootstrap, fleet, name) as arm:
                for step in range(3):
                    chunk = await arm.infer(observation(step=step), ttl_ms=20_000)
                    assert chunk.actions.shape == (8, 7)
                    assert chunk.attempts == 1
        assert len(responder.seen) == 18
        for key, partition, _, headers in responder.seen:
            assert key is not None
            assert partition == partition_of(key, PARTITIONS)
            assert headers[h.REQUEST_ID] == headers[h.CORRELATION_ID]


async def test_replies_to_others_in_the_same_partition_are_passed_over(kafka_bootstrap: str, fleet: str) -> None:
    partition = partition_of(b"arm-0", PARTITIONS)
    neighbour = next(n for n in map("arm-{}".format, range(1, 99)) if partition_of(n.encode(), PARTITIONS) == partition)
    with responding(kafka_bootstrap, fleet):
        async with robot(kafka_bootstrap, fleet, "arm-0") as first, robot(kafka_bootstrap, fleet, neighbour) as second:
            for step in range(3):
                one = await first.infer(observation(step=step), ttl_ms=20_000)
                two = await second.infer(observation(step=step), ttl_ms=20_000)
                assert one.request_id != two.request_id


async def test_a_lost_reply_is_asked_for_again_with_the_same_bytes(kafka_bootstrap: str, fleet: str) -> None:
    asked: list[str] = []

    def second_time(request: InferenceRequest) -> Outcome | None:
        asked.append(request.request_id)
        return acts(request) if len(asked) > 1 else None

    with responding(kafka_bootstrap, fleet, second_time) as responder:
        # The second attempt has almost as long as the first one.
        async with robot(kafka_bootstrap, fleet, "arm-1", retry=RetryRule(attempt_share=0.15)) as arm:
            chunk = await arm.infer(observation(), ttl_ms=20_000)
        assert isinstance(chunk, ActionChunk)
        assert chunk.attempts == 2
        assert len({value for _, _, value, _ in responder.seen}) == 1


async def test_a_refusal_comes_with_its_code_and_is_not_repeated(kafka_bootstrap: str, fleet: str) -> None:
    def refuses(request: InferenceRequest) -> Outcome:
        return Outcome(
            request=RequestSummary(request_id=request.request_id),
            rejection=Rejection(code="no_live_worker", status=503, retry_after_s=1),
        )

    with responding(kafka_bootstrap, fleet, refuses) as responder:
        async with robot(kafka_bootstrap, fleet, "arm-1") as arm:
            with pytest.raises(Refused) as caught:
                await arm.infer(observation(), ttl_ms=20_000)
        assert (caught.value.code, caught.value.recorded) == ("no_live_worker", True)
        assert len(responder.seen) == 1


async def test_no_answer_is_late(kafka_bootstrap: str, fleet: str) -> None:
    async with robot(kafka_bootstrap, fleet, "arm-1") as arm:
        with pytest.raises(Late):
            await arm.infer(observation(), ttl_ms=400)


async def test_a_frame_too_large_for_the_topic_is_refused_before_it_is_sent(kafka_bootstrap: str, fleet: str) -> None:
    async with robot(kafka_bootstrap, fleet, "arm-1") as arm:
        with pytest.raises(Refused, match="smaller images") as caught:
            await arm.infer(observation(images={"base": b"\xff\xd8" + bytes(MAX_MESSAGE_BYTES)}))
    assert (caught.value.code, caught.value.status) == ("too_large", 413)


async def test_a_fleet_without_topics_says_so_at_open(kafka_bootstrap: str) -> None:
    with pytest.raises(ConnectionError, match="was the fleet added"):
        async with robot(kafka_bootstrap, "nobody", "arm-1"):
            pass


@pytest.mark.slow
async def test_a_broker_that_goes_and_comes_back_costs_only_the_frames_in_between(own_layout: Layout) -> None:
    kafka = Kafka(own_layout)
    with running(kafka, own_layout) as server:
        fleet = create_fleet(kafka.bootstrap)
        with responding(kafka.bootstrap, fleet):
            async with robot(kafka.bootstrap, fleet, "arm-1", lifetime_ms=1000) as arm:
                await arm.infer(observation(step=0), ttl_ms=20_000)
                server.kill()
                with pytest.raises((Late, Unreachable)):
                    await arm.infer(observation(step=1), ttl_ms=1000)
                server.start()
                chunk = await arm.infer(observation(step=2), ttl_ms=60_000)
                assert chunk.actions.shape == (8, 7)
