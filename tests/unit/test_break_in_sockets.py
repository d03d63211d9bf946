"""Break-in attempts at the WebSockets: /v1/stream and the peers' protocols."""

from __future__ import annotations

import contextlib
import json
import socket as sockets
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from gpu_consumers.jobs import decode_image
from ingest_api.key_watch import BURST
from runtime.errors import Reject
from schemas import openpi_wire
from schemas.messages import Claim, Image, ImageEncoding
from schemas.scopes import Scope
from tests.gate_bench import GateBench, request
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, KEY, DictKeys, key_record
from tests.unit.break_in_case import (
    ADDRESSES,
    PAYLOADS,
    VICTIM,
    VICTIM_KEY,
    settings_with,
    standing,
    token_for,
    watched,
)
from tests.unit.test_break_in_keys import forgeries
from tests.unit.websocket_case import closed_with, heard, heard_bytes, infer, serving

DOORS = ("/v1/stream", "/", "/v1/openpi", "/v1/vla-eval")


def two() -> Api:
    return Api(table=DictKeys(key_record(), key_record(VICTIM_KEY, customer_id=VICTIM, key_id="k-2")))


async def test_a_socket_is_not_opened_with_what_is_no_key() -> None:
    wrong = [{"Authorization": f"Bearer {VICTIM_KEY[:-1]}u"}, {"Authorization": "Api-Key ' OR 1=1--"}]
    wrong += [{"Authorization": f"Bearer {token}"} for token in forgeries().values()]
    async with serving(two()) as it:
        for door in DOORS:
            for headers in wrong:
                with pytest.raises(InvalidStatus) as refused:
                    await it.connect(door, additional=headers)
                assert refused.value.response.status_code == 401, door
        assert it.api.gateway.asked == []


async def test_a_socket_is_not_opened_with_a_token_or_key_for_something_else() -> None:
    api = two()
    async with serving(api) as it:
        for door in DOORS:
            with pytest.raises(InvalidStatus) as refused:
                await it.connect(door, additional={"Authorization": f"Bearer {token_for((Scope.READ,))}"})
            assert refused.value.response.status_code == 403, door


@pytest.mark.parametrize("door", [*DOORS, "hello", "/act", "/v1/robots", "/v1/stream/sessions"])
async def test_guessing_at_any_door_is_recorded_with_its_address(door: str) -> None:
    api = two()
    told = watched(api)
    async with serving(api) as it, httpx.AsyncClient(base_url=it.http) as http:
        for number in range(BURST):
            guess = f"vla_guess000_{number:043d}"
            header = {"Authorization": f"Bearer {guess}"}
            if door == "hello":
                async with it.connect(key=None) as socket:
                    await socket.send(json.dumps({"type": "hello", "key": guess}))
                    assert (await heard(socket))["problem"]["status"] == 401
            elif door in DOORS:
                with pytest.raises(InvalidStatus):
                    await it.connect(door, additional=header)
            else:
                answer = await http.request("POST" if door == "/act" else "GET", door, headers=header)
                assert answer.status_code == 401
    assert [(event.action, event.origin) for event in told] == [("key.guessing", "127.0.0.1")]


async def test_a_socket_of_another_site_is_not_opened() -> None:
    api = Api(settings=settings_with(allowed_hosts=("api.example.org",)))
    async with serving(api) as it:
        for door in DOORS:
            with pytest.raises(InvalidStatus):
                await it.connect(door)


async def test_a_session_resumes_and_lists_nothing_of_another_customer() -> None:
    async with serving(two()) as it, httpx.AsyncClient() as http:
        question = infer()
        async with it.connect(key=VICTIM_KEY) as theirs:
            session = (await heard(theirs))["session_id"]
            await theirs.send(json.dumps(question))
            await heard(theirs)
            async with it.connect() as mine:
                await heard(mine)
                ids = [question["request_id"], session, "nobody's"]
                await mine.send(json.dumps({"type": "resume", "request_ids": ids}))
                resumed = await heard(mine)
                assert (resumed["answered"], resumed["pending"], resumed["unknown"]) == ([], [], ids)
                answer = await http.get(f"{it.http}/v1/stream/sessions", headers={"authorization": f"Bearer {KEY}"})
                assert session not in answer.text


async def test_a_frame_makes_its_sender_nobody_else() -> None:
    async with serving(two()) as it, it.connect() as socket:
        await heard(socket)
        for forged in ("customer_id", "consent_tier", "deadline_ms", "reply_topic", "source", "key"):
            await socket.send(json.dumps(infer(**{forged: VICTIM})))
            assert (await heard(socket))["problem"]["status"] == 400, forged
        await socket.send(json.dumps(infer()))
        assert (await heard(socket))["type"] == "chunk"
        assert {question.customer_id for question in it.api.gateway.asked} == {CUSTOMER}


async def test_injected_text_in_a_frame_is_answered_in_one_frame_and_makes_no_label() -> None:
    async with serving(two()) as it, it.connect() as socket:
        await heard(socket)
        for field in ("robot_id", "instruction", "episode_id", "model", "request_id"):
            for payload in PAYLOADS:
                await socket.send(json.dumps({**infer(), field: payload}))
                assert (await heard(socket))["type"] in ("chunk", "error")
        exposition = it.api.metrics.exposition().decode()
        assert not any(payload[:40] in exposition for payload in PAYLOADS)


@pytest.mark.parametrize("uri", ADDRESSES)
async def test_an_address_in_a_frame_is_no_image_either(uri: str) -> None:
    async with serving(two()) as it, it.connect() as socket:
        await heard(socket)
        for image in ({"camera": "base", "data": uri}, {"camera": "base", "claim": {"uri": uri}}, {"uri": uri}):
            await socket.send(json.dumps(infer(images=[image])))
            assert (await heard(socket))["problem"]["status"] == 400
        assert it.api.gateway.asked == []


async def test_nothing_comes_to_an_address_that_a_request_names() -> None:
    knocked: list[object] = []
    with sockets.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/image.jpg"
        claim = Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, claim=Claim(uri=address, bytes=1000))
        bench = GateBench()
        async with serving(two()) as it, it.connect() as session:
            await heard(session)
            # A frame of protobuf can say it; the way through is the gate's, which refuses it.
            await session.send(request(images=[claim]).SerializeToString())
            await heard_bytes(session)
            bench.ask(it.api.gateway.requests[0])
            await bench.step()
        (outcome,) = bench.outcomes()
        assert [violation.reason for violation in outcome.rejection.violations] == ["claim_unsupported"]
        with pytest.raises(Reject, match="no claims"):
            decode_image(claim)
        with contextlib.suppress(BlockingIOError):
            knocked.append(listener.accept())
    assert knocked == []


async def test_a_frame_that_is_too_large_or_a_bomb_ends_the_connection() -> None:
    api = Api(settings=settings_with(stream_max_frame_bytes=100_000))
    async with serving(api) as it:
        for door in ("/v1/stream", "/", "/v1/vla-eval"):
            async with it.connect(door) as socket:
                # The server may be gone before all of it is sent.
                with contextlib.suppress(ConnectionClosed):
                    await socket.send(bytes(40_000_000))
                assert await closed_with(socket) in (1009, 1006), door
        assert api.gateway.asked == []


@pytest.mark.parametrize("content", [{"__ndarray__": True, b"data": b"x"}, {"prompt": "../../etc/passwd"}, [[]] * 1000])
async def test_what_a_peer_packs_is_data_and_never_code(content: Any) -> None:
    pickled = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."
    for frame in (openpi_wire.pack(content), pickled):
        async with serving(two()) as it, it.connect("/") as socket:
            await socket.recv()
            await socket.send(frame)
            assert isinstance(await socket.recv(), str)
            assert it.api.gateway.asked == []


async def test_the_robot_in_a_url_is_a_name_and_no_path() -> None:
    async with serving(two()) as it:
        for robot in ("..%2F..%2Fetc", "a%0d%0ab", f"{VICTIM}%2Farm-2", "%00"):
            with pytest.raises(InvalidStatus) as refused:
                await it.connect(f"/?robot_id={robot}")
            assert refused.value.response.status_code == 400
    assert standing().gateway.asked == []
