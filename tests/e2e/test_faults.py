"""Roles are ended under load, by SIGKILL and SIGTERM; the books balance and no identity has two answers."""

from __future__ import annotations

import itertools
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from confluent_kafka import Producer

from examples.tabletop.world import TabletopWorld
from runtime.kafka import build_producer
from runtime.settings import Settings
from schemas import headers as h
from schemas.codes import Code
from schemas.messages import Image, ImageEncoding, InferenceRequest
from schemas.topics import OUTCOMES, REQUESTS, RESULTS, requests_topic
from sinks.books import Books, read_books
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow]

ROBOTS = 6
_numbers = itertools.count(10_000)


@dataclass
class Ledger:
    """Kept outside the system: every request sent, every final answer received."""

    answers: dict[str, httpx.Response] = field(default_factory=dict)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)


class Load:
    """Robots that send a frame, wait for its answer, and retry with the same id while no answer comes."""

    def __init__(self, stack: RunningStack) -> None:
        self._stack = stack
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(ROBOTS)
        self.ledger = Ledger()

    def __enter__(self) -> Load:
        self._robots = [self._pool.submit(self._robot) for _ in range(ROBOTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for robot in self._robots:
            robot.result(timeout=180)
        self._pool.shutdown()

    def wait_for(self, answers: int) -> None:
        """Until that many more requests are answered."""
        goal = len(self.ledger.answers) + answers
        end = time.monotonic() + 180
        while len(self.ledger.answers) < goal:
            assert time.monotonic() < end, "answers stopped coming"
            time.sleep(0.05)

    def _robot(self) -> None:
        while not self._stop.is_set():
            body = observation(next(_numbers))
            self.ledger.bodies[body["request_id"]] = body
            answer = self._answer(body)
            if answer is not None:
                self.ledger.answers[body["request_id"]] = answer

    def _answer(self, body: dict[str, Any]) -> httpx.Response | None:
        end = time.monotonic() + 150
        while time.monotonic() < end:
            try:
                answer = self._stack.post(body)
            except (httpx.TransportError, ValueError):
                time.sleep(0.2)
                continue
            if answer.status_code == 200 or answer.json().get("recorded"):
                return answer
            time.sleep(0.2)
        return None


def assert_balanced(settings: Settings, ledger: Ledger) -> Books:
    books = read_books(settings, wait_s=90)
    assert books.balanced, books.explain()
    assert set(ledger.answers) == set(ledger.bodies), "a request was never answered"
    return books


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill", "term"])
@pytest.mark.parametrize("role", ["api", "gate", "gpu", "sink postgres", "sink parquet"])
def test_a_role_that_ends_under_load_leaves_the_books_balanced(
    stack: RunningStack, settings: Settings, role: str, number: signal.Signals
) -> None:
    with Load(stack) as load:
        load.wait_for(10)
        stack.end(role, number)
        load.wait_for(10)
    assert_balanced(settings, load.ledger)
    # A retry gets the first answer, whatever was killed in between.
    request_id, first = next((i, a) for i, a in load.ledger.answers.items() if a.status_code == 200)
    again = stack.post(load.ledger.bodies[request_id])
    assert again.json()["result_id"] == first.json()["result_id"]


@pytest.mark.parametrize("topic", [REQUESTS, requests_topic("demo"), "vla.accepted.tabletop-pi0.v1", RESULTS, OUTCOMES])
def test_random_bytes_on_any_topic_become_a_dead_letter_and_nothing_stops(
    stack: RunningStack, settings: Settings, topic: str
) -> None:
    producer: Producer = build_producer(settings, "poison")
    for value in (b"", b"\xff" * 50, b"\x00\x01\x02", b"plain text"):
        producer.produce(topic, value, key=b"arm-0", headers=list(h.encode({h.CUSTOMER_ID: "x"})))
    assert producer.flush(10) == 0
    answer = stack.post(observation(next(_numbers)))
    assert answer.status_code == 200, answer.text
    books = read_books(settings, wait_s=60)
    assert books.balanced, books.explain()


def test_a_fleet_cannot_pose_as_another_customer(stack: RunningStack, settings: Settings) -> None:
    world = TabletopWorld(77)
    instruction = world.reset()
    jpeg, state = world.observe()
    request = InferenceRequest(
        request_id="6e1d5f4a-2b7c-4f6e-9a53-0d8c6b7f1a2e",
        robot_id="posing-arm",
        robot_type="tabletop_arm",
        instruction=instruction,
        images=[Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=jpeg)],
        state=state.tolist(),
        ttl_ms=10_000,
    )
    producer = build_producer(settings, "posing")
    forged: dict[str, str | int] = {
        h.CUSTOMER_ID: "somebody-else",
        h.CONSENT_TIER: "full",
        h.DEADLINE_MS: 1,
        h.REPLY_TOPIC: OUTCOMES,
    }
    topic = requests_topic("demo")
    producer.produce(topic, request.SerializeToString(), key=b"posing-arm", headers=list(h.encode(forged)))
    assert producer.flush(10) == 0
    assert read_books(settings, wait_s=60).balanced
    rows = stack.rows("SELECT customer_id, code FROM inference_log WHERE request_id = %s", request.request_id)
    assert [(row[0], row[1] in (None, "", "ok", Code.UNSAFE_ACTION)) for row in rows] == [("demo", True)]
