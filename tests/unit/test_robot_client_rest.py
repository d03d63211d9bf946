"""RestTransport and AsyncRobotClient together, against a scripted API."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest

from robot_client import (
    ActionChunk,
    AsyncRobotClient,
    InferenceOptions,
    Late,
    Refused,
    RestTransport,
    RobotClient,
    Unreachable,
)
from tests.unit.robot_client_case import JPEG, ManualClock, observation, reply_json

Answer = Callable[[httpx.Request], httpx.Response]


class ScriptedApi:
    """Gives one scripted answer after the other, and keeps every body that it was sent."""

    def __init__(self, clock: ManualClock, answers: Iterable[Answer], *, takes_s: float = 0.01) -> None:
        self._clock = clock
        self._answers = iter(answers)
        self._takes_s = takes_s
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        self.keys.append(request.headers["authorization"])
        self._clock.now_s += self._takes_s
        return next(self._answers)(request)


def actions_answer(**changes: Any) -> Answer:
    return lambda request: httpx.Response(200, json=reply_json(json.loads(request.content)["request_id"], **changes))


def problem(status: int, code: str, *, retry_after: str | None = None, **fields: Any) -> Answer:
    headers = {"retry-after": retry_after} if retry_after is not None else {}
    return lambda _request: httpx.Response(status, json={"code": code, "status": status, **fields}, headers=headers)


def broken(error: type[httpx.TransportError]) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        raise error("scripted", request=request)

    return answer


async def ask(*answers: Answer, ttl_ms: int = 2000, takes_s: float = 0.01) -> tuple[Any, ScriptedApi, ManualClock]:
    """What one `infer` against the scripted answers returns or raises."""
    clock = ManualClock()
    api = ScriptedApi(clock, answers, takes_s=takes_s)
    transport = RestTransport("http://api", "key-1", transport=httpx.MockTransport(api))
    robot = AsyncRobotClient(
        transport, robot_id="arm-1", robot_type="tabletop_arm", model="pi0", clock=clock, sleep=clock.sleep
    )
    async with robot:
        try:
            result: Any = await robot.infer(observation(), ttl_ms=ttl_ms)
        except (Refused, Late, Unreachable) as error:
            result = error
    return result, api, clock


async def test_a_reply_becomes_a_read_only_chunk_with_its_timings() -> None:
    chunk, api, _ = await ask(actions_answer())
    assert isinstance(chunk, ActionChunk)
    assert chunk.actions.shape == (8, 7)
    assert not chunk.actions.flags.writeable
    assert chunk.timings_ms["inference"] == 12.0
    assert chunk.batch_size == 3
    assert chunk.attempts == 1
    assert chunk.round_trip_ms == pytest.approx(10.0)
    body = api.bodies[0]
    assert base64.b64decode(body["images"][0]["data"]) == JPEG
    assert (body["robot_id"], body["robot_type"], body["model"]) == ("arm-1", "tabletop_arm", "pi0")
    assert (body["episode_id"], body["step"], body["options"]["ttl_ms"]) == ("episode-1", 4, 2000)
    assert api.keys == ["Bearer key-1"]


@pytest.mark.parametrize(
    "first",
    [
        broken(httpx.ConnectError),
        broken(httpx.ReadError),
        broken(httpx.RemoteProtocolError),
        broken(httpx.ReadTimeout),
        problem(502, "bad_gateway"),
        problem(503, "overloaded"),
        problem(429, "quota_exceeded"),
        lambda _request: httpx.Response(503, text="<html>no JSON at all</html>"),
    ],
)
async def test_a_retry_repeats_the_same_request_under_the_same_id(first: Answer) -> None:
    chunk, api, _ = await ask(first, actions_answer())
    assert isinstance(chunk, ActionChunk)
    assert chunk.attempts == 2
    assert len(api.bodies) == 2
    assert api.bodies[0] == api.bodies[1]
    assert chunk.request_id == api.bodies[0]["request_id"]


async def test_retry_after_is_honoured_within_the_deadline() -> None:
    chunk, _, clock = await ask(problem(503, "overloaded", retry_after="1.5"), actions_answer())
    assert isinstance(chunk, ActionChunk)
    assert clock.pauses_s == [1.5]


async def test_a_retry_after_beyond_the_deadline_is_the_end_at_once() -> None:
    refused, api, clock = await ask(problem(503, "overloaded", retry_after="5"), actions_answer())
    assert isinstance(refused, Refused)
    assert (refused.code, refused.status, refused.retry_after_s) == ("overloaded", 503, 5.0)
    assert clock.pauses_s == []
    assert len(api.bodies) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 422, 423, 500])
async def test_other_refusals_are_never_repeated(status: int) -> None:
    refused, api, _ = await ask(problem(status, "scripted"), actions_answer())
    assert isinstance(refused, Refused)
    assert refused.status == status
    assert len(api.bodies) == 1


@pytest.mark.parametrize(("status", "code"), [(503, "no_live_worker"), (429, "quota_exceeded")])
async def test_a_recorded_refusal_is_final_under_its_id(status: int, code: str) -> None:
    refused, api, _ = await ask(problem(status, code, recorded=True, retry_after="0.1"), actions_answer())
    assert isinstance(refused, Refused)
    assert refused.recorded
    assert len(api.bodies) == 1


async def test_a_refusal_carries_code_status_and_violations() -> None:
    violations = [{"field": "image.base", "reason": "blank", "detail": "uncover the camera"}]
    refused, api, _ = await ask(problem(422, "invalid_image", recorded=True, violations=violations))
    assert isinstance(refused, Refused)
    assert (refused.code, refused.status) == ("invalid_image", 422)
    assert [(v.field, v.reason, v.detail) for v in refused.violations] == [
        ("image.base", "blank", "uncover the camera")
    ]
    assert refused.request_id == api.bodies[0]["request_id"]
    assert "uncover the camera" in str(refused)


@pytest.mark.parametrize("code", ["timeout", "expired"])
async def test_a_deadline_that_passed_in_the_service_is_late(code: str) -> None:
    late, api, _ = await ask(problem(504, code), actions_answer())
    assert isinstance(late, Late)
    assert len(api.bodies) == 1


async def test_an_expired_replay_is_never_returned() -> None:
    late, _, _ = await ask(actions_answer(replayed=True, expired=True))
    assert isinstance(late, Late)


async def test_a_replay_within_its_deadline_is_returned() -> None:
    chunk, _, _ = await ask(actions_answer(replayed=True))
    assert isinstance(chunk, ActionChunk)
    assert chunk.replayed


async def test_actions_that_come_after_the_deadline_are_thrown_away() -> None:
    late, _, _ = await ask(actions_answer(), ttl_ms=500, takes_s=0.6)
    assert isinstance(late, Late)


async def test_a_service_that_is_away_until_the_deadline_is_unreachable() -> None:
    error, api, clock = await ask(*[broken(httpx.ConnectError)] * 100)
    assert isinstance(error, Unreachable)
    assert len({body["request_id"] for body in api.bodies}) == 1
    assert clock.now_s <= 102.0 + 0.01


async def test_answers_that_stay_out_until_the_deadline_are_late() -> None:
    error, _, _ = await ask(*[broken(httpx.ReadTimeout)] * 100, takes_s=0.9)
    assert isinstance(error, Late)


async def test_a_reply_without_actions_is_not_executed() -> None:
    body = reply_json()
    body["actions"]["values"][0][0] = None
    refused, _, _ = await ask(lambda _request: httpx.Response(200, json=body))
    assert isinstance(refused, Refused)
    assert refused.code == "bad_reply"


async def test_each_observation_gets_its_own_request_id_and_options_travel() -> None:
    clock = ManualClock()
    api = ScriptedApi(clock, [actions_answer(), actions_answer()])
    robot = AsyncRobotClient(
        RestTransport("http://api", "k", transport=httpx.MockTransport(api)),
        robot_id="arm-1",
        robot_type="tabletop_arm",
        options=InferenceOptions(latest_only=True, seed=7, safety_mode="clamp"),
        clock=clock,
        sleep=clock.sleep,
    )
    async with robot:
        await robot.infer(observation())
        await robot.infer(observation(step=5))
    first, second = api.bodies
    assert first["request_id"] != second["request_id"]
    assert first["options"] == {"ttl_ms": 2000, "latest_only": True, "seed": 7, "safety_mode": "clamp"}
    assert "model" not in first


def test_the_sync_client_gives_the_same_answers_and_ends_its_thread() -> None:
    clock = ManualClock()
    api = ScriptedApi(clock, [actions_answer(), problem(422, "invalid_state")])
    transport = RestTransport("http://api", "k", transport=httpx.MockTransport(api))
    with RobotClient(transport, robot_id="arm-1", robot_type="tabletop_arm") as robot:
        assert robot.infer(observation()).actions.shape == (8, 7)
        with pytest.raises(Refused, match="invalid_state"):
            robot.infer(observation(step=5))
