"""Peers' protocols over a real socket, frame by frame: what is said, what is never said, and what a refusal becomes."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus

from ingest_api.credentials import as_bearer
from ingest_api.peers.arrays import from_json, pack_vla_eval, to_json, unpack
from ingest_api.peers.openvla import _check_pairing
from ingest_api.problems import Problem
from ingest_api.replies import Reply
from schemas import openpi_wire
from schemas.codes import Code
from schemas.messages import EpisodeEvent, EpisodeKind, ImageEncoding, InferenceRequest, Outcome, Rejection, Violation
from schemas.topics import EPISODES
from tests.cards import model
from tests.pictures import scene
from tests.unit.api_case import Api, acts
from tests.unit.api_stand_ins import CUSTOMER, KEY
from tests.unit.websocket_case import closed_with, heard_bytes, serving

PIXELS = np.asarray(scene())
INSTRUCTION = "push the red block left"
LIBERO = {
    "observation/image": PIXELS,
    "observation/state": np.array([0.5, 0.25]),
    "prompt": INSTRUCTION,
}
API_KEY = {"Authorization": f"Api-Key {KEY}"}


def unsafe(request: InferenceRequest) -> Reply:
    violation = Violation(field="actions[0].dx", reason="range", detail="0.9 is above 0.1")
    refusal = Rejection(code="unsafe_action", status=422, violations=[violation])
    return Reply("c", Outcome(row_id="row-1", rejection=refusal).SerializeToString())


async def test_openpi_hears_metadata_first_and_one_chunk_for_each_observation() -> None:
    api = Api()
    async with serving(api) as it, it.connect("/", additional=API_KEY) as socket:
        metadata = unpack(await heard_bytes(socket))
        assert (metadata["action_horizon"], metadata["action_dim"]) == (4, 3)
        for step in range(2):
            await socket.send(openpi_wire.pack(LIBERO))
            answer = unpack(await heard_bytes(socket))
            assert answer["actions"].shape == (4, 3)
            assert answer["actions"].dtype == np.float32
            assert answer["server_timing"]["infer_ms"] > 0
            assert ("prev_total_ms" in answer["server_timing"]) is (step > 0)
            assert "infer_ms" in answer["policy_timing"]
        first, second = api.gateway.requests
        # Identical frames of one episode, told apart by their step.
        assert (first.step, second.step) == (0, 1)
        assert first.episode_id == second.episode_id
        assert first.robot_id.startswith("openpi-")
        assert (first.robot_type, first.instruction, list(first.state)) == ("test_arm", INSTRUCTION, [0.5, 0.25])
        (image,) = first.images
        assert (image.camera, image.encoding) == ("base", ImageEncoding.IMAGE_ENCODING_JPEG)
        assert len(image.data) < PIXELS.nbytes / 3


@pytest.mark.parametrize("path", ["/v1/openpi", "/v1/openpi/test-model", "/?robot_id=arm-7&robot_type=test_arm"])
async def test_openpi_is_served_on_its_other_paths(path: str) -> None:
    api = Api()
    async with serving(api) as it, it.connect(path, additional=API_KEY) as socket:
        await heard_bytes(socket)
        await socket.send(openpi_wire.pack(LIBERO))
        await heard_bytes(socket)
        assert api.gateway.requests[0].robot_id == "arm-7" or "robot_id" not in path


async def test_openpis_errors_are_a_text_frame_and_the_end() -> None:
    api = Api()
    api.gateway.answer = unsafe
    async with serving(api) as it, it.connect("/", additional=API_KEY) as socket:
        await heard_bytes(socket)
        await socket.send(openpi_wire.pack(LIBERO))
        text = await socket.recv()
        assert isinstance(text, str)
        assert text.startswith("unsafe_action (422): actions[0].dx")
        assert await closed_with(socket) == 1011


async def test_a_refusal_is_held_over_where_the_url_says_so() -> None:
    api = Api()
    async with serving(api) as it, it.connect("/?on_refusal=hold", additional=API_KEY) as socket:
        await heard_bytes(socket)
        await socket.send(openpi_wire.pack(LIBERO))
        await heard_bytes(socket)
        episode = api.gateway.requests[0].episode_id
        api.gateway.answer = unsafe
        await socket.send(openpi_wire.pack(LIBERO))
        held = unpack(await heard_bytes(socket))
        # No motion, and the gripper stays as it was told last.
        assert held["actions"].tolist() == [[0.0, 0.0, 1.0]] * 4
        assert held["vlastream"]["held"]
        # What comes after a refusal is not judged against what came before it.
        await socket.send(openpi_wire.pack(LIBERO))
        await heard_bytes(socket)
        assert api.gateway.requests[-1].episode_id != episode


async def test_what_the_caller_must_mend_is_never_held_over() -> None:
    async with serving(Api()) as it, it.connect("/?on_refusal=hold", additional=API_KEY) as socket:
        await heard_bytes(socket)
        await socket.send(openpi_wire.pack({"prompt": INSTRUCTION}))
        assert str(await socket.recv()).startswith("invalid_image (422)")


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Api-Key wrong"}])
async def test_a_peer_without_a_key_is_not_let_in(headers: dict[str, str]) -> None:
    async with serving(Api()) as it:
        for path in ("/", "/v1/vla-eval"):
            with pytest.raises(InvalidStatus) as refused:
                await it.connect(path, additional=headers)
            assert refused.value.response.status_code == 401


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/openpi/nobody", 404), ("/?robot_id=a%20b", 400), ("/?surprise=1", 400)]
)
async def test_a_url_that_means_nothing_is_refused(path: str, status: int) -> None:
    async with serving(Api()) as it:
        with pytest.raises(InvalidStatus) as refused:
            await it.connect(path, additional=API_KEY)
        assert refused.value.response.status_code == status


async def say(socket: ClientConnection, kind: str, payload: dict[str, Any], seq: int) -> None:
    await socket.send(pack_vla_eval({"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}))


async def test_vla_eval_gets_one_action_an_observation_and_a_new_inference_when_the_chunk_is_used_up() -> None:
    api = Api()
    observation = {"images": {"agentview": PIXELS}, "task_description": INSTRUCTION, "states": np.array([0.5, 0.5])}
    async with serving(api) as it, it.connect("/v1/vla-eval/test-model") as socket:
        await say(socket, "hello", {"harness_version": "0.8.0", "protocol_version": 1}, 7)
        hello = unpack(await heard_bytes(socket))
        assert (hello["type"], hello["seq"], hello["payload"]["protocol_version"]) == ("hello", 7, 1)
        await say(socket, "episode_start", {"task": {"name": "push"}}, 8)
        for seq in range(9, 14):
            await say(socket, "observation", observation, seq)
            action = unpack(await heard_bytes(socket))
            assert (action["type"], action["seq"]) == ("action", seq)
            assert action["payload"]["actions"].shape == (3,)
        # Four steps of the first chunk, one of the second.
        assert len(api.gateway.requests) == 2
        await say(socket, "episode_end", {"success": True}, 14)
        await say(socket, "hello", {}, 15)
        await heard_bytes(socket)
    start, end = (EpisodeEvent.FromString(stored.value or b"") for stored in api.broker.records(EPISODES))
    assert (start.kind, end.kind) == (EpisodeKind.EPISODE_KIND_START, EpisodeKind.EPISODE_KIND_END)
    assert (start.customer_id, start.task, end.success) == (CUSTOMER, "push", True)
    assert {request.episode_id for request in api.gateway.requests} == {start.episode_id} == {end.episode_id}


async def test_vla_evals_errors_leave_the_connection_open() -> None:
    api = Api()
    async with serving(api) as it, it.connect("/v1/vla-eval") as socket:
        for frame in (b"\xc1", b"", msgpack.packb([1]), msgpack.packb({"type": "x"}), "text"):
            await socket.send(frame)
            assert unpack(await heard_bytes(socket))["type"] == "error"
        await say(socket, "observation", {"images": {}}, 3)
        error = unpack(await heard_bytes(socket))
        assert (error["type"], error["seq"]) == ("error", 3)
        assert error["payload"]["error"].startswith("invalid_image (422)")


async def act(api: Api, content: Any, *, key: str = KEY, **options: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url="http://api") as client:
        return await client.post("/act", json=content, headers=headers, **options)


def act_body(**changes: Any) -> dict[str, Any]:
    return {"image": to_json(PIXELS), "instruction": INSTRUCTION, "state": to_json(np.array([0.5, 0.5])), **changes}


async def test_openvlas_clients_get_the_first_action_alone() -> None:
    api = Api()
    answer = await act(api, act_body(unnorm_key="bridge_orig"))
    assert answer.status_code == 200, answer.text
    assert from_json(answer.json()).tolist() == pytest.approx([0.1, 0.0, 1.0])
    doubled = await act(api, {"encoded": json.dumps(act_body())})
    assert from_json(json.loads(doubled.json())).shape == (3,)
    assert [request.step for request in api.gateway.requests] == [0, 1]


@pytest.mark.parametrize(
    ("card", "wanted", "status"),
    [
        ({}, "anything", 200),
        ({"policy_config": {"unnorm_key": "bridge_orig"}}, "bridge_orig", 200),
        ({"policy_config": {"unnorm_key": "bridge_orig"}}, None, 200),
        ({"policy_config": {"unnorm_key": "bridge_orig"}}, "fractal", 422),
        ({"pairings": {"test_arm": {"unnorm_key": "fractal"}}}, "fractal", 200),
        ({"pairings": {"test_arm": {"unnorm_key": "fractal"}}}, "bridge_orig", 422),
        ({"pairings": {"test_arm": {"unnorm_key": "fractal"}}}, 7, 422),
    ],
)
def test_openvlas_statistics_are_those_of_the_card_or_of_its_pairing(
    card: dict[str, Any], wanted: object, status: int
) -> None:
    content = act_body() if wanted is None else act_body(unnorm_key=wanted)
    if status == 200:
        _check_pairing(content, model(**card))
        # It is no part of an observation.
        assert "unnorm_key" not in content
        return
    with pytest.raises(Problem) as refused:
        _check_pairing(content, model(**card))
    assert (refused.value.status, refused.value.code) == (422, Code.EMBODIMENT_MISMATCH)
    named = [name for name in ("bridge_orig", "fractal") if name in str(card)]
    assert named[0] in refused.value.detail, "the caller is told which there are"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({}, 422),
        ({"encoded": 5}, 400),
        ({"encoded": "[]"}, 400),
        (act_body(image=None), 422),
        (act_body(image={"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}), 400),
        (act_body(image={"__numpy__": 5}), 400),
        (act_body(instruction=7), 422),
        (act_body(state="high"), 422),
    ],
)
async def test_openvlas_errors_are_errors(content: Any, status: int) -> None:
    answer = await act(Api(), content)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


async def test_a_wrong_key_and_an_unsafe_action_are_told_by_their_status() -> None:
    api = Api()
    assert (await act(api, act_body(), key="vla_wrong")).status_code == 401
    api.gateway.answer = unsafe
    refused = await act(api, act_body())
    assert (refused.status_code, refused.json()["code"]) == (422, "unsafe_action")


async def test_config_is_told_and_never_set() -> None:
    async with Api().client(None) as client:
        assert (await client.get("/config")).json() == {
            "applied": {},
            "config": {"max_batch_size": 16, "max_wait_time": 0.0},
        }
        refused = await client.get("/config", params={"max_batch_size": "8"})
        assert (refused.status_code, refused.json()["applied"]) == (422, {})


@pytest.mark.parametrize(
    ("header", "bearer"),
    [
        (None, None),
        ("Bearer vla_x", "Bearer vla_x"),
        ("Api-Key vla_x", "Bearer vla_x"),
        ("Basic " + "a2V5OnZsYV94", "Bearer vla_x"),
        ("Basic ???", "Basic ???"),
    ],
)
def test_a_key_is_read_out_of_every_header_that_clients_send(header: str | None, bearer: str | None) -> None:
    assert as_bearer(header) == bearer


async def test_a_peer_that_waits_is_answered_before_the_server_ends_and_an_idle_one_is_sent_away() -> None:
    api = Api()
    api.gateway.answer = lambda _: None
    async with serving(api) as it:
        busy, idle = await it.connect("/", additional=API_KEY), await it.connect("/", additional=API_KEY)
        for socket in (busy, idle):
            await heard_bytes(socket)
        await busy.send(openpi_wire.pack(LIBERO))
        await asyncio.wait_for(api.gateway.was_asked.wait(), 20)
        await it.stop()
        assert await closed_with(idle) == 1012
        api.gateway.futures[0].set_result(acts(api.gateway.requests[0]))
        assert unpack(await heard_bytes(busy))["actions"].shape == (4, 3)
        assert await closed_with(busy) == 1012
