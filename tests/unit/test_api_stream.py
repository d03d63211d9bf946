"""/v1/stream over a real socket: frames of both kinds, errors, resume, back-pressure, drain."""

from __future__ import annotations

import asyncio
import json
import uuid
from dataclasses import replace
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from websockets.exceptions import InvalidStatus

from ingest_api.admission import Admission
from ingest_api.counting import InferenceCounts
from ingest_api.exchange import Exchange
from ingest_api.replies import Reply
from ingest_api.stream.conversation import Conversation, Requests
from ingest_api.websocket import Gone, Socket
from runtime.settings import Settings
from schemas.messages import Image, ImageEncoding, InferenceRequest, Outcome, Rejection, StreamAnswer, Violation
from tests.cards import cards
from tests.pictures import jpeg
from tests.unit.api_case import Api, acts, chunk_outcome
from tests.unit.api_stand_ins import CUSTOMER, KEY, DictKeys, key_record
from tests.unit.websocket_case import closed_with, heard, heard_bytes, infer, serving, until

OTHER_KEY = "vla_other678_" + "t" * 43


def settings_with(**changes: Any) -> Settings:
    return Settings(_env_file=None, database_url=SecretStr("postgresql://x"), shutdown_timeout_s=2, **changes)


def never(request: InferenceRequest) -> None:
    return None


def message(**changes: Any) -> InferenceRequest:
    fields: dict[str, Any] = {
        "request_id": str(uuid.uuid4()),
        "robot_id": "arm-1",
        "robot_type": "test_arm",
        "instruction": "push the red block left",
        "state": [0.5, 0.5],
        "images": [Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=jpeg())],
        **changes,
    }
    return InferenceRequest(**fields)


async def test_a_json_request_gets_what_rest_would_answer() -> None:
    async with serving(Api()) as it, it.connect() as socket:
        welcome = await heard(socket)
        assert (welcome["type"], welcome["protocol"]) == ("welcome", "vlastream.v1")
        question = infer(traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
        await socket.send(json.dumps(question))
        chunk = await heard(socket)
        assert (chunk["type"], chunk["request_id"]) == ("chunk", question["request_id"])
        assert (chunk["actions"]["horizon"], chunk["actions"]["dim"]) == (4, 3)
        assert chunk["timings_ms"]["total"] > 0
        asked = it.api.gateway.asked[0]
        assert (asked.customer_id, asked.robot_id) == (CUSTOMER, b"arm-1")
        assert asked.traceparent.startswith("00-0af7651916cd43dd")


async def test_a_protobuf_request_gets_a_protobuf_answer() -> None:
    async with serving(Api()) as it, it.connect() as socket:
        await heard(socket)
        question = message()
        await socket.send(question.SerializeToString())
        answer = StreamAnswer.FromString(await heard_bytes(socket))
        assert answer.request_id == question.request_id
        assert answer.outcome.chunk.actions.horizon == 4
        assert answer.recorded
        assert not answer.replayed
        # The default model is named on the way, as for every other protocol.
        assert it.api.gateway.requests[0].model == "test-model"


async def test_a_refusal_in_protobuf_says_what_rest_says() -> None:
    api = Api()
    async with serving(api) as it, it.connect() as socket:
        await heard(socket)
        await socket.send(message(model="nobody").SerializeToString())
        answer = StreamAnswer.FromString(await heard_bytes(socket))
        rejection = answer.outcome.rejection
        assert (rejection.code, rejection.status, answer.recorded) == ("unknown_model", 404, False)
        assert rejection.violations[0].field == "model"
        refusal = Rejection(code="stopped", status=423, violations=[Violation(field="robot_id", reason="stopped")])
        api.gateway.answer = lambda _: Reply("c", Outcome(row_id="row-1", rejection=refusal).SerializeToString())
        await socket.send(message().SerializeToString())
        answer = StreamAnswer.FromString(await heard_bytes(socket))
        assert (answer.outcome.rejection.code, answer.recorded) == ("stopped", True)


async def test_answers_come_as_they_are_ready_and_are_told_apart_by_their_ids() -> None:
    api = Api()
    api.gateway.answer = never
    async with serving(api) as it, it.connect() as socket:
        await heard(socket)
        first, second = infer(step=1), infer(step=2)
        for question in (first, second):
            await socket.send(json.dumps(question))
        await until(lambda: len(api.gateway.futures) == 2)
        for index in (1, 0):
            api.gateway.futures[index].set_result(acts(api.gateway.requests[index]))
        assert [(await heard(socket))["request_id"] for _ in range(2)] == [second["request_id"], first["request_id"]]


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        "[]",
        "null",
        "{}",
        '{"type": 5}',
        '{"type": "infer"}',
        '{"type": "surprise", "request_id": "r-1"}',
        '{"type": "resume", "request_ids": []}',
        '{"type": "resume", "request_ids": ["x", 5]}',
        '{"type": "ping", "nonce": {}}',
        '{"type": "hello", "key": "again"}',
        '{"type": "infer", "request_id": "r", "surprise": 1}',
        "[" * 100_000,
        '"\ud800"'.encode("utf-8", "surrogatepass").decode("utf-8", "replace"),
        b"",
        b"\xff\xfe\xfd",
        InferenceRequest(robot_id="x").SerializeToString(),
    ],
)
async def test_a_bad_frame_is_told_apart_and_leaves_the_session_open(frame: str | bytes) -> None:
    async with serving(Api()) as it, it.connect() as socket:
        await heard(socket)
        await socket.send(frame)
        error = await heard(socket)
        assert (error["type"], error["problem"]["status"]) == ("error", 400)
        await socket.send(json.dumps(infer()))
        assert (await heard(socket))["type"] == "chunk"
        assert len(it.api.gateway.asked) == 1


async def test_an_error_names_the_request_that_it_is_about() -> None:
    async with serving(Api()) as it, it.connect() as socket:
        await heard(socket)
        await socket.send(json.dumps(infer("r-7", state="high")))
        error = await heard(socket)
        assert (error["request_id"], error["problem"]["code"]) == ("r-7", "malformed")
        assert error["problem"]["violations"][0]["field"] == "state"
        await socket.send(json.dumps(infer("r-8", instruction="x" * 2_000_000)))
        assert (await heard(socket))["problem"]["status"] == 413


async def test_a_frame_above_the_limit_ends_the_connection() -> None:
    async with serving(Api(settings=settings_with(stream_max_frame_bytes=100_000))) as it, it.connect() as socket:
        await heard(socket)
        await socket.send(bytes(100_001))
        assert await closed_with(socket) == 1009


async def test_no_more_requests_than_allowed_are_unanswered() -> None:
    api = Api(settings=settings_with(stream_max_in_flight=2))
    api.gateway.answer = never
    async with serving(api) as it, it.connect() as socket:
        assert (await heard(socket))["limits"]["in_flight"] == 2
        questions = [infer(step=number) for number in range(3)]
        for question in questions:
            await socket.send(json.dumps(question))
        error = await heard(socket)
        assert (error["request_id"], error["problem"]["status"]) == (questions[2]["request_id"], 429)
        assert error["retry_after_s"] > 0
        assert len(api.gateway.asked) == 2
        api.gateway.futures[0].set_result(acts(api.gateway.requests[0]))
        assert (await heard(socket))["type"] == "chunk"
        await socket.send(json.dumps(questions[2]))
        await until(lambda: len(api.gateway.asked) == 3)


class TakesNothing(Socket):
    """A peer that asks without end and reads nothing after the welcome, until it is dropped."""

    def __init__(self) -> None:
        self.asked = 0
        self.sent = 0
        self.dropped = asyncio.Event()

    async def receive(self, timeout_s: float | None = None) -> str | bytes:
        await asyncio.sleep(0)
        self.asked += 1
        return message(step=self.asked).SerializeToString()

    async def send(self, frame: str | bytes) -> None:
        self.sent += 1
        if self.sent > 1:
            await self.dropped.wait()
            raise Gone


async def test_who_reads_nothing_is_not_read_from_and_is_dropped() -> None:
    api, peer = Api(), TakesNothing()
    exchange = Exchange(
        settings=api.settings,
        cards=cards(),
        gateway=api.gateway,
        admission=Admission(512, 16_000_000, api.metrics),
        workers=api.workers,
        limits=api.limits,
        counts=InferenceCounts(api.metrics, cards()),
    )
    with api.sessions.open("vlastream", CUSTOMER) as session:
        conversation = Conversation(
            socket=peer,
            session=session,
            requests=Requests(api.settings, exchange),
            exchange=exchange,
            authenticate=lambda: api.keys.authenticate(f"Bearer {KEY}"),
            settings=api.settings,
        )
        running = asyncio.create_task(conversation.run())
        await until(lambda: peer.asked >= api.settings.stream_max_in_flight + 16)
        for _ in range(1000):
            await asyncio.sleep(0)
        # What may be unanswered goes to the log, the refusals beyond it wait, and then nothing is read any more.
        assert len(api.gateway.asked) == api.settings.stream_max_in_flight
        assert peer.asked < 80
        peer.dropped.set()
        await asyncio.wait_for(running, 20)


async def test_ping_is_answered_with_its_nonce() -> None:
    async with serving(Api()) as it, it.connect() as socket:
        await heard(socket)
        await socket.send('{"type": "ping", "nonce": "n-1"}')
        assert await heard(socket) == {"type": "pong", "nonce": "n-1"}
        await asyncio.wait_for(await socket.ping(), 10)


async def test_an_idle_session_is_closed() -> None:
    async with serving(Api(settings=settings_with(stream_idle_timeout_s=0.05))) as it, it.connect() as socket:
        await heard(socket)
        assert await closed_with(socket) == 4408


async def test_who_waits_for_an_answer_is_not_idle() -> None:
    api = Api(settings=settings_with(stream_idle_timeout_s=1.0))
    api.gateway.answer = never
    question = json.dumps(infer(options={"ttl_ms": 20_000}))
    async with serving(api) as it, it.connect() as socket:
        await heard(socket)
        await socket.send(question)
        await until(lambda: len(api.gateway.futures) == 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(socket.recv(), 2.5)
        api.gateway.futures[0].set_result(acts(api.gateway.requests[0]))
        assert (await heard(socket))["type"] == "chunk"
        assert await closed_with(socket) == 4408


async def test_a_wrong_key_gets_a_problem_document_and_no_connection() -> None:
    async with serving(Api()) as it:
        with pytest.raises(InvalidStatus) as refused:
            await it.connect(key="vla_unknown9_" + "u" * 43)
        response = refused.value.response
        assert response.status_code == 401
        assert json.loads(response.body or b"")["code"] == "unauthenticated"


async def test_a_browser_says_its_key_in_the_first_frame() -> None:
    async with serving(Api()) as it, it.connect(key=None) as socket:
        await socket.send(json.dumps({"type": "hello", "key": KEY}))
        assert (await heard(socket))["type"] == "welcome"
        await socket.send(json.dumps(infer()))
        assert (await heard(socket))["type"] == "chunk"


@pytest.mark.parametrize("said", ['{"type": "hello", "key": "vla_wrong"}', '{"type": "ping"}', "?", b"\x00"])
async def test_without_a_key_nothing_is_answered_but_that(said: str | bytes) -> None:
    async with serving(Api()) as it, it.connect(key=None) as socket:
        await socket.send(said)
        assert (await heard(socket))["type"] == "error"
        assert await closed_with(socket) == 4401
        assert not it.api.gateway.asked


async def test_a_key_that_is_revoked_ends_the_session_at_its_next_request() -> None:
    api = Api()
    async with serving(api) as it, it.connect() as socket:
        await heard(socket)
        for record in list(api.table.records.values()):
            api.table.records[record.key_hash] = api.cache.records[record.key_hash] = replace(record, is_active=False)
        api.clock.now_s += 60
        await socket.send(json.dumps(infer()))
        error = await heard(socket)
        assert error["problem"]["code"] == "unauthenticated"
        assert await closed_with(socket) == 4401


async def test_an_answer_that_was_ready_while_nobody_was_there_is_resumed() -> None:
    api = Api()
    api.gateway.answer = never
    async with serving(api) as it:
        first, second, third = infer(step=1), infer(step=2), infer(step=3)
        async with it.connect() as socket:
            await heard(socket)
            for question in (first, second):
                await socket.send(json.dumps(question))
            await until(lambda: len(api.gateway.futures) == 2)
        await until(lambda: not api.sessions.of(CUSTOMER))
        api.gateway.futures[0].set_result(acts(api.gateway.requests[0]))
        await asyncio.sleep(0)
        async with it.connect() as socket:
            await heard(socket)
            ids = [question["request_id"] for question in (first, second, third)]
            await socket.send(json.dumps({"type": "resume", "request_ids": ids}))
            resumed = await heard(socket)
            assert resumed == {"type": "resumed", "answered": ids[:1], "pending": ids[1:2], "unknown": ids[2:]}
            answered = await heard(socket)
            assert (answered["request_id"], answered["replayed"], answered["expired"]) == (ids[0], True, False)
            api.gateway.futures[1].set_result(acts(api.gateway.requests[1]))
            pending = await heard(socket)
            assert (pending["request_id"], pending["replayed"]) == (ids[1], False)


async def test_an_answer_that_got_lost_is_given_again_and_marked_when_it_is_too_old() -> None:
    api = Api()

    def late(request: InferenceRequest) -> Reply:
        outcome = chunk_outcome(request)
        outcome.request.deadline_ms = 1
        return Reply("c", outcome.SerializeToString(), replayed=True, expired=True)

    api.gateway.answer = late
    async with serving(api) as it:
        question = message()
        async with it.connect() as socket:
            await heard(socket)
            await socket.send(question.SerializeToString())
            await heard_bytes(socket)
        async with it.connect() as socket:
            await heard(socket)
            await socket.send(json.dumps({"type": "resume", "request_ids": [question.request_id]}))
            await heard(socket)
            answer = StreamAnswer.FromString(await heard_bytes(socket))
            assert (answer.replayed, answer.expired) == (True, True)


async def test_a_later_session_takes_over_and_the_earlier_one_owes_nothing_more() -> None:
    api = Api()
    api.gateway.answer = never
    async with serving(api) as it, it.connect() as old, it.connect() as new:
        await heard(old)
        await heard(new)
        question = infer()
        await old.send(json.dumps(question))
        await until(lambda: len(api.gateway.futures) == 1)
        await new.send(json.dumps({"type": "resume", "request_ids": [question["request_id"]]}))
        assert (await heard(new))["pending"] == [question["request_id"]]
        assert sorted(session.owed for session in api.sessions.of(CUSTOMER)) == [0, 1]
        api.gateway.futures[0].set_result(acts(api.gateway.requests[0]))
        assert (await heard(new))["type"] == "chunk"


async def test_nobody_resumes_another_customers_request() -> None:
    api = Api(table=DictKeys(key_record(), key_record(OTHER_KEY, customer_id="customer-2", key_id="k-2")))
    async with serving(api) as it:
        question = infer()
        async with it.connect() as socket:
            await heard(socket)
            await socket.send(json.dumps(question))
            await heard(socket)
        async with it.connect(key=OTHER_KEY) as socket:
            await heard(socket)
            await socket.send(json.dumps({"type": "resume", "request_ids": [question["request_id"]]}))
            assert (await heard(socket))["unknown"] == [question["request_id"]]


async def test_a_stopping_server_answers_what_is_in_flight_and_says_come_back() -> None:
    api = Api(settings=settings_with())
    api.gateway.answer = never
    async with serving(api) as it, it.connect() as busy, it.connect() as idle:
        for socket in (busy, idle):
            await heard(socket)
        await busy.send(json.dumps(infer()))
        await until(lambda: len(api.gateway.futures) == 1)
        await it.stop()
        for socket in (busy, idle):
            assert (await heard(socket))["type"] == "goaway"
        assert await closed_with(idle) == 1012
        await busy.send(json.dumps(infer()))
        refused = await heard(busy)
        assert (refused["problem"]["code"], refused["retry_after_s"]) == ("unavailable", 1.0)
        api.gateway.futures[0].set_result(acts(api.gateway.requests[0]))
        assert (await heard(busy))["type"] == "chunk"
        assert await closed_with(busy) == 1012
        await asyncio.wait_for(it.task, 20)


async def test_the_callers_own_sessions_are_listed() -> None:
    api = Api(table=DictKeys(key_record(), key_record(OTHER_KEY, customer_id="customer-2", key_id="k-2")))
    async with (
        serving(api) as it,
        it.connect() as socket,
        it.connect(key=OTHER_KEY) as other,
        httpx.AsyncClient() as http,
    ):
        welcome = await heard(socket)
        await heard(other)
        await socket.send(json.dumps(infer()))
        await heard(socket)
        await socket.send("?")
        await heard(socket)
        answer = await http.get(f"{it.http}/v1/stream/sessions", headers={"authorization": f"Bearer {KEY}"})
        (found,) = answer.json()["sessions"]
        assert found["session_id"] == welcome["session_id"]
        told = (found["protocol"], found["robots"], found["requests"], found["chunks"], found["errors"])
        assert told == ("vlastream", ["arm-1"], 1, 1, 1)
        assert found["in_flight"] == 0
        assert (await http.get(f"{it.http}/v1/stream/sessions")).status_code == 401
