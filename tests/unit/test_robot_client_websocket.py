"""WebSocketTransport against a scripted server on loopback: drops, resumes, limits, keys, and sharing."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robot_client import (
    ActionChunk,
    AsyncRobotClient,
    Late,
    LoopThread,
    Refused,
    RobotClient,
    Unreachable,
    WebSocketTransport,
)
from robot_client.errors import AttemptFailed
from robot_client.retry import BackOff, RetryRule
from robot_client.stream_frames import Answer, Frames, Unreadable, read_frame
from robot_client.websocket import stream_url
from schemas.messages import InferenceRequest, Outcome, Rejection, RequestSummary, StreamAnswer, Violation
from tests.stream_server import KEY, Reply, StreamServer, until
from tests.unit.robot_client_case import actions, observation, outcome

QUICK = BackOff(first_s=0.001, longest_s=0.01)
#: Long enough for any machine; what a test waits for comes at once.
TTL_MS = 30_000
BOTH = pytest.mark.parametrize("frames", list(Frames))


def acts(request: InferenceRequest) -> Reply:
    return Reply(outcome(request.request_id))


def silent(request: InferenceRequest) -> None:
    return None


def refuses(code: str, status: int, *, recorded: bool, retry_after_s: float = 0.0) -> Reply:
    rejection = Rejection(
        code=code, status=status, violations=[Violation(field="f", reason="r", detail="d")], retry_after_s=retry_after_s
    )
    return Reply(Outcome(request=RequestSummary(), row_id="row-1", rejection=rejection), recorded=recorded)


def transport(server: StreamServer, frames: Frames = Frames.PROTOBUF, key: str = KEY) -> WebSocketTransport:
    return WebSocketTransport(server.url, key, frames=frames, back_off=QUICK, open_timeout_s=20)


def robot(over: WebSocketTransport, robot_id: str = "arm-1", retry: RetryRule | None = None) -> AsyncRobotClient:
    return AsyncRobotClient(over, robot_id=robot_id, robot_type="tabletop_arm", retry=retry or RetryRule())


@BOTH
async def test_an_observation_is_answered_in_its_own_kind_of_frame(frames: Frames) -> None:
    async with StreamServer(acts) as server, robot(transport(server, frames)) as arm:
        chunk = await arm.infer(observation(), ttl_ms=TTL_MS)
    assert isinstance(chunk, ActionChunk)
    np.testing.assert_array_equal(chunk.actions, actions())
    assert (chunk.control_rate_hz, chunk.batch_size, chunk.attempts) == (10.0, 3, 1)
    assert chunk.timings_ms["total"] == 1.0
    assert server.asked[0].robot_id == "arm-1"
    assert server.asked[0].images[0].data == observation().images["base"]


@BOTH
async def test_a_request_in_flight_survives_a_drop_and_is_resumed_by_its_id(frames: Frames) -> None:
    async with StreamServer(silent) as server, robot(transport(server, frames)) as arm:
        asked = asyncio.create_task(arm.infer(observation(), ttl_ms=TTL_MS))
        await until(lambda: len(server.asked) == 1)
        server.drop()
        await until(lambda: len(server.resumed) == 1)
        request_id = server.asked[0].request_id
        assert server.resumed == [[request_id]]
        await server.decide(request_id, Reply(outcome(request_id), replayed=True))
        chunk = await asked
    assert chunk.attempts == 1
    assert chunk.replayed
    assert len(server.asked) == 1, "resume saves sending the pictures again"


async def test_what_the_server_no_longer_knows_is_sent_again_under_its_id_with_the_same_content() -> None:
    answers = iter([None, True])
    async with (
        StreamServer(lambda request: acts(request) if next(answers) else None, remembers=False) as server,
        robot(transport(server)) as arm,
    ):
        asked = asyncio.create_task(arm.infer(observation(), ttl_ms=TTL_MS))
        await until(lambda: len(server.asked) == 1)
        server.drop()
        assert (await asked).actions.shape == (8, 7)
    first, second = server.asked
    assert first == second


async def test_many_requests_in_flight_are_resumed_in_frames_that_the_server_takes() -> None:
    async with StreamServer(silent, in_flight=8, resume_ids=3) as server, robot(transport(server)) as arm:
        asked = [asyncio.create_task(arm.infer(observation(step=n), ttl_ms=TTL_MS)) for n in range(8)]
        await until(lambda: len(server.asked) == 8)
        server.drop()
        await until(lambda: sum(map(len, server.resumed)) == 8)
        assert [len(ids) for ids in server.resumed] == [3, 3, 2]
        for request in server.asked:
            await server.decide(request.request_id, acts(request))
        assert len({(await answer).request_id for answer in asked}) == 8


async def test_a_server_that_comes_back_later_is_found_again() -> None:
    async with StreamServer(acts) as server, robot(transport(server)) as arm:
        await arm.infer(observation(step=0), ttl_ms=TTL_MS)
        await server.stop()
        asked = asyncio.create_task(arm.infer(observation(step=1), ttl_ms=TTL_MS))
        await server.start()
        assert (await asked).actions.shape == (8, 7)
    assert len(server.sockets) == 2


async def test_no_more_is_asked_at_a_time_than_the_server_allows() -> None:
    async with StreamServer(silent, in_flight=2) as server, robot(transport(server)) as arm:
        asked = [asyncio.create_task(arm.infer(observation(step=n), ttl_ms=TTL_MS)) for n in range(5)]

        def asked_so_many(count: int) -> bool:
            return len(server.asked) == count

        for done in range(5):
            await until(partial(asked_so_many, min(done + 2, 5)))
            request = server.asked[done]
            await server.decide(request.request_id, acts(request))
        assert len([await answer for answer in asked]) == 5


async def test_a_retry_is_told_from_the_first_and_its_second_answer_goes_to_nobody() -> None:
    # Attempts share the deadline, about three seconds each: the second is made while the first has no answer.
    rule = RetryRule(attempt_share=0.05)
    async with StreamServer(silent, in_flight=2) as server, robot(transport(server), retry=rule) as arm:
        asked = asyncio.create_task(arm.infer(observation(), ttl_ms=60_000))
        await until(lambda: len(server.asked) == 2)
        request = server.asked[0]
        assert request == server.asked[1]
        for _ in range(2):
            await server.decide(request.request_id, acts(request))
        assert (await asked).attempts == 2
        server.answer = acts
        assert (await arm.infer(observation(step=9), ttl_ms=TTL_MS)).actions.shape == (8, 7)


@BOTH
async def test_an_error_leaves_the_session_open(frames: Frames) -> None:
    refusals = iter([refuses("invalid_image", 422, recorded=True)])
    async with (
        StreamServer(lambda request: next(refusals, acts(request))) as server,
        robot(transport(server, frames)) as arm,
    ):
        with pytest.raises(Refused) as caught:
            await arm.infer(observation(step=0), ttl_ms=TTL_MS)
        await arm.infer(observation(step=1), ttl_ms=TTL_MS)
    assert (caught.value.code, caught.value.status, caught.value.recorded) == ("invalid_image", 422, True)
    assert caught.value.request_id == server.asked[0].request_id
    assert len(server.sockets) == 1


@BOTH
async def test_a_refusal_that_was_not_recorded_is_tried_again_when_the_service_says(frames: Frames) -> None:
    refusals = iter([refuses("quota_exceeded", 429, recorded=False, retry_after_s=0.01)])
    async with (
        StreamServer(lambda request: next(refusals, acts(request))) as server,
        robot(transport(server, frames)) as arm,
    ):
        assert (await arm.infer(observation(), ttl_ms=TTL_MS)).attempts == 2


@BOTH
async def test_an_expired_answer_is_never_returned(frames: Frames) -> None:
    async with (
        StreamServer(lambda request: Reply(outcome(request.request_id), replayed=True, expired=True)) as server,
        robot(transport(server, frames)) as arm,
    ):
        with pytest.raises(Late):
            await arm.infer(observation(), ttl_ms=TTL_MS)


async def test_a_wrong_key_is_refused_to_each_request_and_not_tried_over_and_over() -> None:
    async with StreamServer(acts) as server, robot(transport(server, key="wrong")) as arm:
        for step in range(2):
            with pytest.raises(Refused, match="not known") as caught:
                await arm.infer(observation(step=step), ttl_ms=TTL_MS)
            assert (caught.value.code, caught.value.status) == ("unauthenticated", 401)
    assert server.upgrades == 3, "one at open, one for each request"


async def test_a_key_that_is_revoked_ends_what_is_in_flight() -> None:
    async with StreamServer(silent) as server, robot(transport(server)) as arm:
        asked = asyncio.create_task(arm.infer(observation(), ttl_ms=TTL_MS))
        await until(lambda: len(server.asked) == 1)
        await server.sockets[0].close(4401, "revoked")
        with pytest.raises(Refused) as caught:
            await asked
    assert (caught.value.code, caught.value.request_id) == ("unauthenticated", server.asked[0].request_id)


async def test_too_many_sessions_are_waited_for_as_any_overload() -> None:
    problem = json.dumps({"status": 503, "code": "overloaded", "detail": "too many sessions"}).encode()
    async with StreamServer(acts) as server:
        server.turned_away = (503, {"Retry-After": "0.01"}, problem)
        async with robot(transport(server)) as arm:
            asked = asyncio.create_task(arm.infer(observation(), ttl_ms=TTL_MS))
            await until(lambda: server.upgrades >= 3)
            server.turned_away = None
            assert (await asked).attempts > 1


async def test_a_server_that_stops_is_asked_nothing_new_and_its_successor_is() -> None:
    async with StreamServer(silent) as server, robot(transport(server)) as arm:
        before = asyncio.create_task(arm.infer(observation(step=0), ttl_ms=TTL_MS))
        await until(lambda: len(server.asked) == 1)
        await server.say({"type": "goaway", "retry_after_s": 0.01})
        # Frames keep their order: once the pong is there, the goaway has been read.
        await (await server.sockets[0].ping())
        after = asyncio.create_task(arm.infer(observation(step=1), ttl_ms=TTL_MS))
        await server.decide(server.asked[0].request_id, acts(server.asked[0]))
        await before
        assert len(server.asked) == 1
        server.answer = acts
        await server.sockets[0].close(1012, "restart")
        assert (await after).actions.shape == (8, 7)
    assert len(server.sockets) == 2


async def test_an_idle_session_that_was_closed_opens_again_when_there_is_something_to_ask() -> None:
    async with StreamServer(acts) as server, robot(transport(server)) as arm:
        await server.sockets[0].close(4408, "idle")
        assert (await arm.infer(observation(), ttl_ms=TTL_MS)).actions.shape == (8, 7)
    assert len(server.sockets) == 2


async def test_a_frame_that_the_server_would_end_the_session_for_is_refused_here() -> None:
    async with StreamServer(acts, frame_bytes=1000) as server, robot(transport(server)) as arm:
        with pytest.raises(Refused, match="smaller images") as caught:
            await arm.infer(observation(images={"base": b"\xff\xd8" + bytes(2000)}), ttl_ms=TTL_MS)
        await arm.infer(observation(), ttl_ms=TTL_MS)
    assert (caught.value.code, caught.value.status) == ("too_large", 413)


async def test_noise_is_passed_over() -> None:
    async with StreamServer(silent) as server, robot(transport(server)) as arm:
        asked = asyncio.create_task(arm.infer(observation(), ttl_ms=TTL_MS))
        await until(lambda: len(server.asked) == 1)
        request = server.asked[0]
        for noise in ("no json", "[]", '{"type": 3}', '{"type": "news"}', b"\xff\xff\xff", '{"type": "error"}'):
            await server.sockets[0].send(noise)
        await server.say({"type": "error", "request_id": None, "problem": {"status": 400, "code": "malformed"}})
        await server.sockets[0].send(StreamAnswer(request_id="of nobody").SerializeToString())
        await server.decide(request.request_id, acts(request))
        assert (await asked).actions.shape == (8, 7)


async def test_a_service_that_is_away_is_said_at_open_and_unreachable_later() -> None:
    async with StreamServer(acts) as server:
        await server.stop()
        nobody = WebSocketTransport(server.url, KEY, back_off=QUICK, open_timeout_s=0.1)
        with pytest.raises(ConnectionError, match="did not answer"):
            await nobody.open()
        await server.start()
        async with robot(transport(server)) as arm:
            await server.stop()
            with pytest.raises(Unreachable):
                await arm.infer(observation(), ttl_ms=100)


async def test_robots_of_a_process_share_one_connection_until_the_last_leaves() -> None:
    async with StreamServer(acts) as server:
        shared = transport(server)
        async with robot(shared, "arm-1") as first:
            async with robot(shared, "arm-2") as second:
                await asyncio.gather(*(arm.infer(observation(step=n)) for n, arm in enumerate((first, second))))
            await first.infer(observation(step=5), ttl_ms=TTL_MS)
        assert len(server.sockets) == 1
        await server.sockets[0].wait_closed()
        assert server.sockets[0].close_code == 1000
    assert {request.robot_id for request in server.asked} == {"arm-1", "arm-2"}


def test_robots_without_asyncio_share_a_connection_too() -> None:
    with LoopThread() as thread:
        server = StreamServer(acts)
        thread.submit(server.start()).result()
        shared = transport(server)
        with (
            RobotClient(shared, robot_id="arm-1", robot_type="tabletop_arm", thread=thread) as first,
            RobotClient(shared, robot_id="arm-2", robot_type="tabletop_arm", thread=thread) as second,
        ):
            futures = [arm.submit(observation(), ttl_ms=TTL_MS) for arm in (first, second)]
            assert all(future.result().actions.shape == (8, 7) for future in futures)
        thread.submit(server.stop()).result()
    assert len(server.sockets) == 1


@given(st.binary(max_size=100) | st.text(max_size=100))
def test_no_frame_from_the_network_breaks_the_reader(content: bytes | str) -> None:
    try:
        read_frame(content)
    except Unreadable:
        return


VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), lambda x: st.lists(x, max_size=4))


@pytest.mark.parametrize("kind", ["chunk", "error"])
@given(fields=st.dictionaries(st.sampled_from(["actions", "problem", "retry_after_s", "safety"]), VALUES))
def test_an_answer_that_is_none_is_a_refusal_not_a_crash(kind: str, fields: dict[str, object]) -> None:
    answer = read_frame(json.dumps({"type": kind, "request_id": "r", **fields}))
    assert isinstance(answer, Answer)
    with pytest.raises((Refused, AttemptFailed)):
        answer.read()


@given(st.binary(max_size=100))
def test_a_binary_answer_that_is_none_is_a_refusal_not_a_crash(content: bytes) -> None:
    answer = Answer("r", StreamAnswer(request_id="r", outcome=Outcome(row_id=str(content))))
    with pytest.raises(Refused):
        answer.read()


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_a_pause_before_connecting_again_grows_and_stays_bounded(failures: int, lot: float) -> None:
    rule = BackOff()
    pause_s = rule.pause_s(failures, lot=lot)
    assert 0 <= pause_s <= rule.longest_s
    assert rule.pause_s(failures + 1, lot=lot) >= pause_s


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://127.0.0.1:8000", "ws://127.0.0.1:8000/v1/stream"),
        ("https://robots.example/api/", "wss://robots.example/api/v1/stream"),
        ("ws://h:1", "ws://h:1/v1/stream"),
    ],
)
def test_the_stream_stands_beside_the_rest_of_the_api(url: str, wanted: str) -> None:
    assert stream_url(url) == wanted


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://h", "http://"])
def test_what_is_no_address_of_an_api_is_said_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        stream_url(url)
