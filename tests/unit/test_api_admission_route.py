"""Admission on the route: who is refused unread, and what a request gives back when, however it ends."""

from __future__ import annotations

import asyncio
import base64
import json
import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from ingest_api.exchange import GRACE_S
from ingest_api.gateway import Question
from ingest_api.replies import Reply
from runtime.settings import Settings
from tests.unit.api_case import Api, acts, body
from tests.unit.api_stand_ins import KEY, DictKeys, ScriptedGateway, key_record

OTHER_KEY = "vla_other678_" + "t" * 43


def _api(capacity: int) -> Api:
    table = DictKeys(key_record(), key_record(OTHER_KEY, customer_id="customer-2", key_id="k-2"))
    api = Api(settings=Settings(_env_file=None, inference_queue_max_size=capacity), table=table)
    api.gateway.answer = lambda request: None
    return api


def http_scope() -> dict[str, Any]:
    return {
        "type": "http", "method": "POST", "path": "/v1/inference", "raw_path": b"/v1/inference", "query_string": b"",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())], "http_version": "1.1", "scheme": "http",
        "asgi": {"version": "3.0"}, "client": None, "server": None, "root_path": "",
    }  # fmt: skip


async def _waiting(
    api: Api, count: int, key: str = KEY, content: dict[str, Any] | None = None
) -> list[asyncio.Task[httpx.Response]]:
    before = len(api.gateway.asked)
    frame = content if content is not None else body()
    tasks = [asyncio.create_task(api.post({**frame, "step": before + n}, key=key)) for n in range(count)]
    while len(api.gateway.asked) < before + count:
        api.gateway.was_asked.clear()
        await api.gateway.was_asked.wait()
    return tasks


async def test_an_overloaded_api_refuses_before_it_reads_the_body_and_serves_again_afterwards() -> None:
    api = _api(3)
    tasks = await _waiting(api, 2)
    refused = await api.post(content=b"this is not JSON")
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert (await api.post(content=b"nor this", key=OTHER_KEY)).status_code == 400, "there is room for others"
    tasks += await _waiting(api, 1, OTHER_KEY)
    full = await api.post(content=b"nor that", key=OTHER_KEY)
    assert full.status_code in (429, 503)
    assert api.count("vla_requests_in_flight") == 3
    assert api.count("vla_refused_before_produce_total", code="quota_exceeded") >= 1
    for future, request in zip(api.gateway.futures, api.gateway.requests, strict=True):
        future.set_result(acts(request))
    assert {task.status_code for task in await asyncio.gather(*tasks)} == {200}
    assert api.count("vla_requests_in_flight") == 0
    api.gateway.answer = acts
    assert (await api.post(body(step=99))).status_code == 200


async def test_without_a_key_nobody_takes_a_place() -> None:
    api = _api(1)
    await _waiting(api, 1)
    assert (await api.post(body(), key="vla_unknown1_" + "x" * 43)).status_code == 401


@pytest.mark.parametrize("content", [b"[]", b"{", json.dumps(body(model="pi9")).encode(), json.dumps(body()).encode()])
async def test_a_place_is_given_back_however_a_request_ends(content: bytes) -> None:
    api = _api(1)
    api.gateway.answer = acts
    for _ in range(3):
        assert (await api.post(content=content)).status_code not in (429, 503)
    assert api.count("vla_requests_in_flight") == 0


async def test_a_client_that_leaves_early_makes_no_room_before_its_request_is_over() -> None:
    api = _api(1)
    ttl_ms = 1
    sent = iter([{"type": "http.request", "body": json.dumps(body(options={"ttl_ms": ttl_ms})).encode()}])

    async def receive() -> dict[str, object]:
        message = next(sent, None)
        if message is None:
            await api.gateway.was_asked.wait()
            return {"type": "http.disconnect"}
        return dict(message)

    async def send(message: object) -> None:
        pass

    await api.app(http_scope(), receive, send)
    assert api.gateway.futures[0].cancelled()
    assert api.count("vla_requests_in_flight") == 1
    loop = asyncio.get_running_loop()
    over = loop.create_future()
    loop.call_later(ttl_ms / 1000 + GRACE_S + 0.1, over.set_result, None)
    await over
    assert api.count("vla_requests_in_flight") == 0


async def test_bodies_beyond_the_room_are_refused_unread_until_the_log_has_what_came_before() -> None:
    table = DictKeys(key_record(), key_record(OTHER_KEY, customer_id="customer-2", key_id="k-2"))
    room = Settings(_env_file=None, max_body_bytes=20_000, inference_queue_max_bytes=80_000)
    api = Api(settings=room, table=table)
    api.gateway.answer = lambda request: None
    frame = body(images=[{"camera": "base", "data": base64.b64encode(b"x" * 12_000).decode()}])
    tasks: list[asyncio.Task[httpx.Response]] = []
    while api.count("vla_request_bytes_held") < 60_000:
        tasks += await _waiting(api, 1, content=frame)
    refused = await api.post(content=b"z" * 19_000)
    assert (refused.status_code, refused.json()["violations"][0]["reason"]) == (429, "customer_share_bytes")
    assert int(refused.headers["retry-after"]) >= 1
    for settle in api.gateway.settle:
        settle()
    assert api.count("vla_request_bytes_held") == 0
    assert api.count("vla_requests_in_flight") == len(tasks), "they still wait for their answers"
    assert (await api.post(content=b"z" * 19_000)).status_code == 400
    for future, request in zip(api.gateway.futures, api.gateway.requests, strict=True):
        future.set_result(acts(request))
    assert {task.status_code for task in await asyncio.gather(*tasks)} == {200}


async def test_a_body_of_unknown_length_counts_as_the_largest() -> None:
    api = Api(settings=Settings(_env_file=None, max_body_bytes=20_000, inference_queue_max_bytes=80_000))
    held: list[float] = []

    async def chunks() -> AsyncIterator[bytes]:
        held.append(api.count("vla_request_bytes_held"))
        yield b"{}"

    assert (await api.post(content=chunks())).status_code == 400
    assert held == [20_000]
    assert api.count("vla_request_bytes_held") == 0


class ForgetfulGateway(ScriptedGateway):
    """Takes requests and keeps nothing of them, as the producer's queue is not Python's."""

    def ask(
        self, question: Question, timeout_s: float, on_settled: Callable[[], None] | None = None
    ) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        self.was_asked.set()
        return future


async def test_a_request_that_waits_for_its_answer_holds_nothing_of_its_body() -> None:
    api = Api(gateway=ForgetfulGateway(acts))
    content = json.dumps(body(images=[{"camera": "base", "data": base64.b64encode(b"x" * 300_000).decode()}])).encode()

    async def ask() -> None:
        sent = iter([bytes(bytearray(content))])

        async def receive() -> dict[str, object]:
            part = next(sent, None)
            if part is None:
                await asyncio.get_running_loop().create_future()
            return {"type": "http.request", "body": part}

        async def send(message: object) -> None:
            pass

        await api.app(http_scope(), receive, send)

    async def waiting(count: int) -> list[asyncio.Task[None]]:
        tasks = []
        for _ in range(count):
            before = len(api.gateway.futures)
            tasks.append(asyncio.create_task(ask()))
            while len(api.gateway.futures) == before:
                api.gateway.was_asked.clear()
                await api.gateway.was_asked.wait()
        return tasks

    # What is made once is made by the first ones.
    tasks = await waiting(3)
    tracemalloc.start()
    try:
        tasks += await waiting(10)
        each = tracemalloc.get_traced_memory()[0] / 10
    finally:
        tracemalloc.stop()
    assert each < len(content) / 4, f"{each:.0f} bytes are held for each body of {len(content)}"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
