"""Everything that is broken on purpose, one small function each. The load goes on meanwhile."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from runtime.kafka import build_producer
from schemas import headers as h
from schemas.messages import Claim
from schemas.topics import OUTCOMES, REQUESTS, RESULTS, accepted_topic, requests_topic
from tests import pictures
from tests.faults.ledger import Sent
from tests.faults.load import FLEET, message
from tests.faults.rollout import roll_a_revision
from tests.faults.scene import CARD, Scene

OUTAGE_S = 20.0


@dataclass(frozen=True)
class Fault:
    """What is broken. `strike` returns when it is over and everything is back."""

    name: str
    strike: Callable[[Scene], None]


def kill(*roles: str) -> Fault:
    """kill -9 one process of each role at once."""

    def strike(scene: Scene) -> None:
        gone = [scene.signal(role, signal.SIGKILL) for role in roles]
        scene.wait_until_back(*gone)

    return Fault(f"kill -9 of {' and '.join(roles)}", strike)


def rolling_restart(role: str) -> Fault:
    """SIGTERM to each process of a role, the next one when the one before is back."""

    def strike(scene: Scene) -> None:
        for pid in scene.stack.pids(role):
            os.kill(pid, signal.SIGTERM)
            scene.wait_until_back(pid)

    return Fault(f"rolling restart of {role}", strike)


def away(server: str, seconds: float = OUTAGE_S) -> Fault:
    """A server is ended, and again whenever it was started, for so long."""
    # Postgres waits for its clients to leave at SIGTERM.
    orderly = signal.SIGINT if server == "postgres" else signal.SIGTERM

    def strike(scene: Scene) -> None:
        end = time.monotonic() + seconds
        gone: set[int] = set()
        while time.monotonic() < end:
            for pid in set(scene.stack.pids(server)) - gone:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if gone else orderly)
                gone.add(pid)
            time.sleep(0.1)
        scene.wait_until_back(*gone)

    return Fault(f"{server} away for {seconds:.0f} s", strike)


def frozen(server: str, seconds: float = OUTAGE_S) -> Fault:
    """A server keeps its connections and does nothing."""

    def strike(scene: Scene) -> None:
        pid = scene.signal(server, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            os.kill(pid, signal.SIGCONT)
        scene.wait_until_back()

    return Fault(f"{server} frozen for {seconds:.0f} s", strike)


def scale_gpu_workers(scene: Scene) -> None:
    with scene.more_gpu_workers(2):
        scene.load.wait_for_answers(20)
    scene.load.wait_for_answers(20)


def slow_device(scene: Scene) -> None:
    """Batches that take ten times as long."""
    asked = [scene.load.ask(instruction="please fault slow now") for _ in range(20)]
    for answered in asked:
        answered.result(timeout=100)


def failing_policy(scene: Scene) -> None:
    """One request of a batch raises, returns NaN, the wrong shape, values out of range."""
    faults = ("raise", "nan", "shape", "range", "refuse")
    asked = [scene.load.ask(instruction=f"please fault {fault} now") for fault in faults for _ in range(3)]
    for answered in asked:
        answered.result(timeout=100)


def hanging_policy(scene: Scene) -> None:
    """The watchdog ends a worker whose policy does not return."""
    before = set(scene.stack.pids("gpu"))
    asked = scene.load.ask(instruction="please fault hang now")
    end = time.monotonic() + 60
    while before <= set(scene.stack.pids("gpu")):
        assert time.monotonic() < end, "nobody ended the worker that hangs"
        time.sleep(0.1)
    asked.result(timeout=100)
    scene.wait_until_back()


def poison_everywhere(scene: Scene) -> None:
    """Random bytes, truncated messages, missing headers, a claim whose hash is wrong, pictures that are none."""
    good = message(_body(), pictures.jpeg()).SerializeToString()
    values = [b"", os.urandom(200), b"plain text", good[: len(good) // 2], good]
    producer = build_producer(scene.settings, "poison")
    topics = [REQUESTS, requests_topic(FLEET), accepted_topic(CARD.deployment), RESULTS, OUTCOMES]
    for topic in topics:
        for value in values:
            # The good message has no headers: on the fleet's topic it is a request, elsewhere nobody's.
            if value is not good or topic != requests_topic(FLEET):
                producer.produce(topic, value, key=b"poison")
    body = _body()
    claimed = message(body, b"")
    claimed.images[0].claim.CopyFrom(Claim(uri="s3://bucket/nothing", sha256=bytes(32), bytes=50_000))
    producer.produce(requests_topic(FLEET), claimed.SerializeToString(), key=claimed.robot_id)
    assert producer.flush(30) == 0
    # Its outcome is a refusal, and counts in the books like any other.
    scene.load.ledger.send(
        Sent(claimed.request_id, claimed.robot_id, claimed.step, claimed.ttl_ms / 1000, unheard=True)
    )
    bomb = pictures.encoded(pictures.scene(64, 64).resize((2048, 2048)), "PNG")
    for data in (os.urandom(2_000_000), pictures.flat(0), b"\xff\xd8\xff", bomb[: len(bomb) // 2]):
        image = {"camera": "base", "data": base64.b64encode(data).decode()}
        answer = scene.stack.post(_body(images=[image]))
        assert 400 <= answer.status_code < 500, (answer.status_code, answer.text[:300])


def wrong_clocks(scene: Scene) -> None:
    """Robots whose clocks are an hour off get the same answers as all others."""
    for hours in (-1, 1):
        at_ms = round((time.time() + hours * 3600) * 1000)
        answer = scene.stack.post(_body(captured_at_ms=at_ms))
        assert answer.status_code == 200, answer.text[:300]


def repeated_and_reordered(scene: Scene) -> None:
    """Every record of a robot twice, in the wrong order."""
    producer = build_producer(scene.settings, "repeating")
    robot = f"repeating-{uuid.uuid4().hex[:6]}"
    bodies = [_body(robot_id=robot, step=step) for step in range(10)]
    for body in [*reversed(bodies), *bodies]:
        value = message(body, pictures.jpeg()).SerializeToString()
        producer.produce(requests_topic(FLEET), value, key=robot, headers=list(h.encode({})))
    assert producer.flush(30) == 0


def leaving_clients(scene: Scene) -> None:
    """Clients that send a request and hang up before its answer."""
    host, _, port = scene.stack.api.removeprefix("http://").partition(":")
    for _ in range(10):
        body = json.dumps(_body()).encode()
        head = (
            f"POST /v1/inference HTTP/1.1\r\nHost: {host}\r\nAuthorization: {scene.stack.headers['Authorization']}\r\n"
        )
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)


def _body(**changes: object) -> dict[str, object]:
    body: dict[str, object] = {
        "request_id": str(uuid.uuid4()),
        "robot_id": f"aside-{uuid.uuid4().hex[:6]}",
        "robot_type": "test_arm",
        "instruction": "pick up the red block",
        "images": [{"camera": "base", "data": base64.b64encode(pictures.jpeg()).decode()}],
        "state": [0.5, 0.5],
        "step": 1,
        "options": {"ttl_ms": 5000},
    }
    return {**body, **changes}


#: Short, and the most telling: run in CI.
SHORT = [
    kill("gate"),
    kill("gpu"),
    kill("api", "sink postgres"),
    rolling_restart("gate"),
    kill("kafka"),
    Fault("policy that raises, returns NaN, a wrong shape", failing_policy),
    Fault("policy that hangs", hanging_policy),
    Fault("poison on every topic", poison_everywhere),
    Fault("a revision rolled and a fleet added, two models", roll_a_revision),
]

ALL = [
    *SHORT,
    kill("api"),
    kill("sink postgres"),
    kill("sink parquet"),
    kill("gate", "gpu"),
    kill("sink postgres", "sink parquet"),
    *(rolling_restart(role) for role in ("api", "gpu", "sink postgres", "sink parquet")),
    away("kafka"),
    frozen("kafka"),
    away("postgres"),
    away("valkey"),
    away("s3"),
    Fault("GPU workers 2 -> 4 -> 2", scale_gpu_workers),
    Fault("device 10x slower", slow_device),
    Fault("robot clocks an hour off", wrong_clocks),
    Fault("records repeated and reordered", repeated_and_reordered),
    Fault("clients that leave", leaving_clients),
]
