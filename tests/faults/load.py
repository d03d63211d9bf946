"""Open-loop load: requests leave by a schedule, whatever comes back, over REST and by direct produce."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
import uuid
from concurrent.futures import Future
from typing import Any

import httpx
from confluent_kafka import KafkaError, Message, Producer

from runtime.kafka import build_producer
from schemas.messages import Image, ImageEncoding, InferenceRequest
from schemas.topics import requests_topic
from tests import pictures
from tests.e2e.running_stack import RunningStack
from tests.faults.ledger import Answer, Ledger, Sent

FLEET = "demo"
INSTRUCTION = "pick up the red block"
#: Pause before the first retry; doubled with each, as robots that come back all at once would be the next fault.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.3, 5.0
#: How long a robot goes on asking for the outcome of one observation.
_GIVE_UP_S = 90.0


class Load:
    """`robots` robots send an observation `rate_hz` times a second together, one in four of them by Kafka.

    A robot over REST asks again with the same id until it has the request's final answer.
    """

    def __init__(self, stack: RunningStack, *, rate_hz: float = 10.0, robots: int = 8, ttl_ms: int = 3000) -> None:
        self.ledger = Ledger()
        self._stack = stack
        self._rate_hz = rate_hz
        self._robots = robots
        self._ttl_ms = ttl_ms
        self._run_id = uuid.uuid4().hex[:8]
        self._picture = pictures.jpeg()
        self._stop = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._failure: BaseException | None = None

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    @property
    def scheduled_robots(self) -> dict[str, str]:
        """The robots of the schedule that hear their answers: request id -> robot id."""
        sent = list(self.ledger.sent.values())
        return {s.request_id: s.robot_id for s in sent if not s.unheard and s.robot_id.startswith(self._run_id)}

    def ask(self, **changes: Any) -> Future[None]:
        """One request besides the schedule, by a robot of its own."""
        body = self._body(10_000_000 + len(self.ledger.sent), f"extra-{uuid.uuid4().hex[:6]}", **changes)
        return asyncio.run_coroutine_threadsafe(self._until_final(body), self._loop)

    def wait_for_answers(self, count: int, timeout_s: float = 60.0) -> None:
        """Until that many more requests have actions that may be executed."""
        start = time.monotonic()
        known = len(self.ledger.answers)
        while sum(answer.fresh and not answer.code for answer in self.ledger.answers[known:]) < count:
            assert time.monotonic() < start + timeout_s, f"no {count} answers with actions within {timeout_s:.0f} s"
            assert self._thread.is_alive(), "the load has ended"
            time.sleep(0.05)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._send_all())
        except BaseException as error:
            self._failure = error
        finally:
            self._loop.close()

    async def _send_all(self) -> None:
        producer = build_producer(self._stack.settings, "load")
        limits = httpx.Limits(max_connections=500, max_keepalive_connections=50)
        async with httpx.AsyncClient(timeout=self._ttl_ms / 1000 + 5, limits=limits) as self._client:
            tasks: set[asyncio.Task[None]] = set()
            started, number = time.monotonic(), 0
            while not self._stop.is_set():
                await asyncio.sleep(max(started + number / self._rate_hz - time.monotonic(), 0))
                robot = number % self._robots
                body = self._body(number, f"{self._run_id}-{robot}")
                if robot % 4 == 3:
                    self._produce(producer, body)
                else:
                    task = asyncio.create_task(self._until_final(body))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                number += 1
            await asyncio.gather(*tasks)
        await asyncio.to_thread(producer.flush, 60)

    def _body(self, number: int, robot_id: str, **changes: Any) -> dict[str, Any]:
        body = {
            "request_id": str(uuid.uuid4()),
            "robot_id": robot_id,
            "robot_type": "test_arm",
            "instruction": INSTRUCTION,
            "images": [{"camera": "base", "data": base64.b64encode(self._picture).decode()}],
            "state": [0.5, 0.5],
            "step": number,
            "options": {"ttl_ms": self._ttl_ms},
        }
        return {**body, **changes}

    def _produce(self, producer: Producer, body: dict[str, Any]) -> None:
        request, sent = message(body, self._picture), self._sent(body, unheard=True)

        def acknowledged(error: KafkaError | None, _: Message) -> None:
            if error is None:
                self.ledger.send(sent)

        producer.produce(
            requests_topic(FLEET), request.SerializeToString(), key=request.robot_id, on_delivery=acknowledged
        )
        producer.poll(0)

    def _sent(self, body: dict[str, Any], *, unheard: bool = False) -> Sent:
        ttl_s = body["options"]["ttl_ms"] / 1000
        return Sent(body["request_id"], body["robot_id"], body["step"], ttl_s, unheard=unheard)

    async def _until_final(self, body: dict[str, Any]) -> None:
        self.ledger.send(self._sent(body))
        give_up, pause_s = time.monotonic() + _GIVE_UP_S, _FIRST_PAUSE_S
        while time.monotonic() < give_up:
            sent_s = time.time()
            try:
                answer = await self._client.post(
                    f"{self._stack.api}/v1/inference", json=body, headers=self._stack.headers
                )
                final = self._note(body["request_id"], sent_s, answer)
            except (httpx.HTTPError, OSError, ValueError):
                final = False  # the API is away, or was while it answered
            if final:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _note(self, request_id: str, sent_s: float, answer: httpx.Response) -> bool:
        content = answer.json()
        actions = answer.status_code == 200
        final = actions or bool(content.get("recorded"))
        self.ledger.receive(
            Answer(
                request_id=request_id,
                sent_s=sent_s,
                received_s=time.time(),
                status=answer.status_code,
                code="" if actions else str(content.get("code", "")),
                result_id=str(content.get("result_id", "")) if actions else "",
                fresh=actions and not content["replayed"] and not content["expired"],
                age_s=content.get("timings_ms", {}).get("total", 0.0) / 1000,
                final=final,
            )
        )
        return final


def message(body: dict[str, Any], picture: bytes) -> InferenceRequest:
    """What a robot produces to Kafka for the same observation."""
    return InferenceRequest(
        request_id=body["request_id"],
        robot_id=body["robot_id"],
        robot_type=body["robot_type"],
        instruction=body["instruction"],
        images=[Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=picture)],
        state=body["state"],
        step=body["step"],
        ttl_ms=body["options"]["ttl_ms"],
    )
