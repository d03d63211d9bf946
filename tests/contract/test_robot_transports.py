"""What `infer` promises on every transport: REST, WebSocket with both kinds of frames, and Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import httpx
import numpy as np
import pytest

from robot_client import AsyncRobotClient, Late, Refused, RestTransport, RetryRule, Transport, WebSocketTransport
from robot_client.kafka import KafkaTransport
from robot_client.stream_frames import Frames
from schemas.messages import InferenceRequest, Outcome, Rejection, RequestSummary, Violation
from tests.integration.test_robot_client_kafka import create_fleet, responding
from tests.stream_server import KEY, Answer, Reply, StreamServer, json_of, message_of
from tests.unit.robot_client_case import actions, observation, outcome

ROBOT = "arm-1"
TTL_MS = 30_000
Service = Callable[[Answer], AbstractAsyncContextManager[Transport]]


@asynccontextmanager
async def over_rest(answer: Answer) -> AsyncIterator[Transport]:
    def api(request: httpx.Request) -> httpx.Response:
        message = message_of(request.content)
        reply = answer(message)
        if reply is None:
            raise httpx.ReadTimeout("scripted", request=request)
        status, body, _ = json_of(message.request_id, reply)
        return httpx.Response(status, json=body)

    yield RestTransport("http://api", KEY, transport=httpx.MockTransport(api))


def over_websocket(frames: Frames) -> Service:
    @asynccontextmanager
    async def service(answer: Answer) -> AsyncIterator[Transport]:
        async with StreamServer(answer) as server:
            yield WebSocketTransport(server.url, KEY, frames=frames)

    return service


def over_kafka(bootstrap: str) -> Service:
    def decided(answer: Answer) -> Callable[[InferenceRequest], Outcome | None]:
        def on_the_log(request: InferenceRequest) -> Outcome | None:
            reply = answer(request)
            return reply.outcome if reply is not None else None

        return on_the_log

    @asynccontextmanager
    async def service(answer: Answer) -> AsyncIterator[Transport]:
        fleet = create_fleet(bootstrap)
        with responding(bootstrap, fleet, decided(answer)):
            yield KafkaTransport(bootstrap, fleet=fleet, robot_id=ROBOT, frame_lifetime_ms=20_000)

    return service


@pytest.fixture(params=["rest", "json frames", "protobuf frames", pytest.param("kafka", marks=pytest.mark.kafka)])
def service(request: pytest.FixtureRequest) -> Service:
    if request.param == "kafka":
        return over_kafka(request.getfixturevalue("kafka_bootstrap"))
    if request.param == "rest":
        return over_rest
    return over_websocket(Frames.JSON if request.param == "json frames" else Frames.PROTOBUF)


class Scripted:
    """Keeps what it is asked, and answers with what the test says, a chunk by default."""

    def __init__(self, *replies: Callable[[InferenceRequest], Reply | None]) -> None:
        self._replies = iter(replies)
        self.asked: list[InferenceRequest] = []

    def __call__(self, request: InferenceRequest) -> Reply | None:
        self.asked.append(request)
        return next(self._replies, acts)(request)


def acts(request: InferenceRequest) -> Reply:
    return Reply(outcome(request.request_id))


def silent(request: InferenceRequest) -> None:
    return None


def rejects(code: str, status: int) -> Callable[[InferenceRequest], Reply]:
    def answer(request: InferenceRequest) -> Reply:
        return Reply(
            Outcome(
                row_id="row-1",
                request=RequestSummary(request_id=request.request_id),
                rejection=Rejection(
                    code=code, status=status, violations=[Violation(field="f", reason="r", detail="what to do")]
                ),
            )
        )

    return answer


def client(transport: Transport, retry: RetryRule | None = None) -> AsyncRobotClient:
    return AsyncRobotClient(transport, robot_id=ROBOT, robot_type="tabletop_arm", model="pi0", retry=retry)


async def test_the_service_gets_the_observation_and_the_robot_its_actions(service: Service) -> None:
    script = Scripted()
    async with service(script) as transport, client(transport) as robot:
        chunk = await robot.infer(observation(executed=actions(3)), ttl_ms=TTL_MS)
    np.testing.assert_array_equal(chunk.actions, actions())
    assert not chunk.actions.flags.writeable
    assert (chunk.control_rate_hz, chunk.safety.mode, chunk.model, chunk.batch_size) == (10.0, "reject", "pi0", 3)
    (asked,) = script.asked
    assert (asked.robot_id, asked.robot_type, asked.model, asked.step) == (ROBOT, "tabletop_arm", "pi0", 4)
    assert (asked.request_id, asked.ttl_ms) == (chunk.request_id, TTL_MS)
    assert asked.images[0].data == observation().images["base"]
    np.testing.assert_array_equal(np.array(asked.state, np.float32), observation().state)
    np.testing.assert_array_equal(np.array(asked.executed.values, np.float32), actions(3).ravel())


async def test_a_lost_answer_is_asked_for_again_under_the_same_id_with_the_same_content(service: Service) -> None:
    script = Scripted(silent)
    # The second attempt has almost as long as the first one.
    async with service(script) as transport, client(transport, RetryRule(attempt_share=0.15)) as robot:
        chunk = await robot.infer(observation(), ttl_ms=20_000)
    assert chunk.attempts == 2
    first, second = script.asked
    assert first == second


@pytest.mark.parametrize(("code", "status"), [("invalid_image", 422), ("stopped", 423), ("no_live_worker", 503)])
async def test_a_recorded_refusal_says_why_and_is_not_repeated(service: Service, code: str, status: int) -> None:
    script = Scripted(rejects(code, status))
    async with service(script) as transport, client(transport) as robot:
        with pytest.raises(Refused, match="what to do") as caught:
            await robot.infer(observation(), ttl_ms=TTL_MS)
    assert (caught.value.code, caught.value.status, caught.value.recorded) == (code, status, True)
    assert len(script.asked) == 1
    assert caught.value.request_id == script.asked[0].request_id


async def test_a_deadline_that_passed_in_the_service_is_late(service: Service) -> None:
    async with service(Scripted(rejects("expired", 504))) as transport, client(transport) as robot:
        with pytest.raises(Late):
            await robot.infer(observation(), ttl_ms=TTL_MS)


async def test_no_answer_is_late(service: Service) -> None:
    async with service(lambda _request: None) as transport, client(transport) as robot:
        with pytest.raises(Late):
            await robot.infer(observation(), ttl_ms=500)
