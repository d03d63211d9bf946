"""POST /v1/inference: every status, with a scripted pipeline behind it."""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from typing import Any

import pytest

from ingest_api.exchange import GRACE_S
from ingest_api.gateway import NoReply
from ingest_api.replies import Reply
from runtime.errors import Overloaded, Unavailable
from schemas.messages import (
    ImageEncoding,
    InferenceRequest,
    Outcome,
    Rejection,
    RequestSummary,
    SafetyMode,
    SafetyReport,
    Stage,
    Violation,
)
from schemas.topics import MAX_INLINE_IMAGE_BYTES
from tests.pictures import encoded, jpeg, scene
from tests.unit.api_case import Api, acts, body, chunk_outcome
from tests.unit.api_stand_ins import CUSTOMER

PARTS = {"ingest", "request_gate", "queue", "inference", "results", "action_gate", "reply"}


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail", "code", "request_id", "violations"} <= document.keys()
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"]
    for violation in document["violations"]:
        assert set(violation) == {"field", "reason", "detail"}
    return document


def refuses(**changes: Any) -> Any:
    fields = {
        "stage": Stage.STAGE_REQUEST_GATE,
        "code": "invalid_robot_type",
        "status": 422,
        "violations": [Violation(field="robot_type", reason="unknown_robot_type", detail="say which robot this is")],
        **changes,
    }

    def answer(request: InferenceRequest) -> Reply:
        summary = RequestSummary(request_id=request.request_id, model=request.model, deadline_ms=2**53)
        return Reply("c", Outcome(row_id="row-1", request=summary, rejection=Rejection(**fields)).SerializeToString())

    return answer


async def test_actions_come_back_in_the_documented_shape() -> None:
    api = Api()
    request_id = str(uuid.uuid4())
    answer = await api.post(body(request_id=request_id))
    assert answer.status_code == 200
    document = answer.json()
    timings = document.pop("timings_ms")
    assert document == {
        "request_id": request_id,
        "result_id": "result-1",
        "model": "test-model",
        "model_revision": "abc",
        "robot_id": "arm-1",
        "episode_id": "e-1",
        "step": 7,
        "actions": {
            "horizon": 4,
            "dim": 3,
            "names": ["dx", "dy", "gripper"],
            "units": ["m", "m", "1"],
            "control_rate_hz": 10.0,
            "values": [[0.1, 0.0, 1.0]] * 4,
        },
        "safety": {
            "score": 0.9,
            "mode": "reject",
            "modified": False,
            "checks": {"range": 0.9, "dims": 1.0},
            "violations": [],
        },
        "batch_size": 3,
        "replayed": False,
        "expired": False,
    }
    assert set(timings) == {"total", *PARTS}
    assert api.count("vla_inference_requests_total", model="test-model", robot_type="test_arm", status="success") == 1
    assert api.count("vla_safety_checks_total", model="test-model", passed="true") == 1


async def test_the_request_in_the_log_says_what_the_body_said() -> None:
    api = Api()
    picture = encoded(scene(), "PNG")
    sent = body(
        request_id="0190b4a2-0000-7000-8000-000000000001",
        images=[{"camera": "base", "data": "data:image/png;base64," + base64.b64encode(picture).decode()}],
        captured_at_ms=5,
        executed=[[0.1, 0.2, 0.0], [0.3, 0.4, 1.0]],
        options={"ttl_ms": 700, "latest_only": True, "seed": 2**64 - 1, "safety_mode": "clamp"},
    )
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert (await api.post(sent, headers={"traceparent": trace})).status_code == 200
    (request,), (question,) = api.gateway.requests, api.gateway.asked
    assert request.request_id == sent["request_id"] == question.request_id
    assert (question.customer_id, question.robot_id, question.traceparent) == (CUSTOMER, b"arm-1", trace)
    assert request.images[0].data == picture
    assert request.images[0].encoding == ImageEncoding.IMAGE_ENCODING_PNG
    assert (request.executed.horizon, request.executed.dim) == (2, 3)
    assert request.options.seed == 2**64 - 1
    assert request.options.latest_only
    assert request.options.safety_mode == SafetyMode.SAFETY_MODE_CLAMP
    assert (request.ttl_ms, request.step, request.captured_at_ms) == (700, 7, 5)
    assert api.gateway.timeouts_s == [0.7 + GRACE_S]


async def test_what_is_left_out_gets_its_default() -> None:
    api = Api()
    image = base64.encodebytes(jpeg()).decode()
    assert "\n" in image
    sent = body(model=..., images=..., image=image, episode_id=..., step=...)
    answer = await api.post(sent, headers={"traceparent": "not one"})
    assert answer.status_code == 200
    (request,) = api.gateway.requests
    assert uuid.UUID(request.request_id)
    assert answer.json()["request_id"] == request.request_id
    assert answer.json()["episode_id"] is None
    assert request.model == "test-model"
    assert (request.images[0].camera, request.images[0].data) == ("base", jpeg())
    assert request.ttl_ms == api.settings.default_ttl_ms
    assert api.gateway.asked[0].traceparent == ""


async def test_bytes_that_are_no_picture_are_left_to_the_gate() -> None:
    api = Api()
    data = base64.b64encode(b"no picture at all").decode()
    await api.post(body(images=[{"camera": "nobody's", "data": data}]))
    (image,) = api.gateway.requests[0].images
    assert (image.camera, image.data) == ("nobody's", b"no picture at all")
    assert image.encoding == ImageEncoding.IMAGE_ENCODING_UNSPECIFIED


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
async def test_numbers_that_are_none_reach_the_gate(number: str) -> None:
    api = Api()
    raw = json.dumps(body(state=[0.5, "HERE"])).replace('"HERE"', number)
    assert (await api.post(content=raw)).status_code == 200
    assert len(api.gateway.requests[0].state) == 2


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"instruction": ...}, "instruction"),
        ({"state": ...}, "state"),
        ({"robot_id": ...}, "robot_id"),
        ({"robot_type": ...}, "robot_type"),
        ({"images": ...}, "images"),
        ({"image": "aGk="}, "images"),
        ({"state": "0.5"}, "state"),
        ({"state": [0.5, "x"]}, "state[1]"),
        ({"state": [0.5, True]}, "state[1]"),
        ({"instruction": 5}, "instruction"),
        ({"images": [{"data": "aGk="}]}, "images[0].camera"),
        ({"images": [{"camera": "base", "data": "@@@@"}]}, "images[0].data"),
        ({"images": [{"camera": "base", "data": "data:image/png,abc"}]}, "images[0].data"),
        ({"images": [{"camera": "base", "data": "aGk=", "encoding": "bmp"}]}, "images[0].encoding"),
        ({"step": -1}, "step"),
        ({"step": 1.5}, "step"),
        ({"executed": [[1.0], [1.0, 2.0]]}, "executed"),
        ({"options": {"ttl_ms": "1000"}}, "options.ttl_ms"),
        ({"options": {"seed": -1}}, "options.seed"),
        ({"options": {"safety_mode": "off"}}, "options.safety_mode"),
        ({"customer_id": "somebody"}, "customer_id"),
        ({"options": {"speed": 1}}, "options.speed"),
    ],
)
async def test_a_body_that_cannot_be_built_is_400_and_names_the_field(changes: dict[str, Any], field: str) -> None:
    api = Api()
    document = assert_problem(await api.post(body(**changes)), 400, "malformed")
    assert [violation["field"] for violation in document["violations"]] == [field]
    assert not api.gateway.asked
    assert api.count("vla_refused_before_produce_total", code="malformed") == 1


@pytest.mark.parametrize(
    "raw", [b"", b"not json", b"[1]", b"{", b'{"a": "\xff"}', b'{"instruction": "\\ud800"}', b"[" * 50_000]
)
async def test_what_is_no_json_object_is_400(raw: bytes) -> None:
    assert_problem(await Api().post(content=raw), 400, "malformed")


async def test_a_million_faults_are_not_all_told() -> None:
    api = Api()
    document = assert_problem(await api.post({f"field{i}": 1 for i in range(5000)}), 400, "malformed")
    assert len(document["violations"]) == 32
    failures = [m for m in api.metrics.registry.collect() if m.name == "vla_validation_failures"]
    assert {sample.labels["field"] for sample in failures[0].samples} <= {
        "other", "instruction", "state", "robot_id", "robot_type",
    }  # fmt: skip


async def test_a_body_over_the_limit_is_413_whether_announced_or_not() -> None:
    api = Api()
    large = b"x" * (api.settings.max_body_bytes + 1)
    assert_problem(await api.post(content=large), 413, "too_large")

    async def pieces() -> Any:
        for start in range(0, len(large), 65536):
            yield large[start : start + 65536]

    answer = await api.post(content=pieces())
    assert_problem(answer, 413, "too_large")
    assert answer.headers["connection"] == "close"


async def test_images_over_their_budget_together_are_413() -> None:
    half = base64.b64encode(b"x" * (MAX_INLINE_IMAGE_BYTES // 2 + 1)).decode()
    images = [{"camera": name, "data": half} for name in ("base", "wrist")]
    document = assert_problem(await Api().post(body(images=images)), 413, "too_large")
    assert document["violations"][0]["field"] == "images"


async def test_a_message_that_no_broker_would_take_is_413() -> None:
    document = assert_problem(await Api().post(body(instruction="x" * 700_000)), 413, "too_large")
    assert document["violations"][0]["field"] == "body"


async def test_an_unknown_model_is_404_and_names_the_known_ones() -> None:
    document = assert_problem(await Api().post(body(model="pi9")), 404, "unknown_model")
    assert "test-model" in document["detail"]


async def test_without_a_live_worker_the_answer_is_503_at_once() -> None:
    api = Api()
    api.worker_leaves()
    answer = await api.post(body())
    assert_problem(answer, 503, "no_live_worker")
    assert int(answer.headers["retry-after"]) >= 1
    assert not api.gateway.asked


@pytest.mark.parametrize(
    ("error", "code"),
    [(Overloaded("512 wait", 1.0), "overloaded"), (Unavailable("broker 10.0.0.7 away"), "unavailable")],
)
async def test_a_gateway_that_cannot_take_it_is_503_without_internals(error: Exception, code: str) -> None:
    api = Api()
    api.gateway.refuses = error
    answer = await api.post(body())
    assert_problem(answer, 503, code)
    assert int(answer.headers["retry-after"]) >= 1
    assert "10.0.0.7" not in answer.text


async def test_ttl_zero_is_refused_and_a_negative_one_is_left_to_the_gate() -> None:
    api = Api()
    document = assert_problem(await api.post(body(options={"ttl_ms": 0})), 422, "invalid_request")
    assert document["violations"][0]["field"] == "options.ttl_ms"
    assert not api.gateway.asked
    await api.post(body(options={"ttl_ms": -5}))
    assert api.gateway.requests[0].ttl_ms == -5
    assert api.gateway.timeouts_s == [api.settings.default_ttl_ms / 1000 + GRACE_S]


async def test_no_reply_in_time_is_504_and_no_recorded_outcome() -> None:
    api = Api()
    api.gateway.answer = lambda request: NoReply(acknowledged=True)
    request_id = str(uuid.uuid4())
    document = assert_problem(await api.post(body(request_id=request_id)), 504, "timeout")
    assert (document["request_id"], document["recorded"]) == (request_id, False)
    assert api.count("vla_inference_requests_total", model="test-model", robot_type="test_arm", status="timeout") == 1


async def test_a_record_that_kafka_never_took_is_503() -> None:
    api = Api()
    api.gateway.answer = lambda request: NoReply(acknowledged=False)
    answer = await api.post(body())
    assert_problem(answer, 503, "unavailable")
    assert "retry-after" in answer.headers


async def test_a_refusal_is_a_problem_with_what_the_gate_said() -> None:
    api = Api()
    api.gateway.answer = refuses()
    request_id = str(uuid.uuid4())
    document = assert_problem(await api.post(body(request_id=request_id)), 422, "invalid_robot_type")
    assert document["request_id"] == request_id
    assert document["recorded"] is True
    assert document["replayed"] is False
    assert document["violations"] == [
        {"field": "robot_type", "reason": "unknown_robot_type", "detail": "say which robot this is"}
    ]
    assert api.count("vla_validation_failures_total", field="robot_type", reason="unknown_robot_type") == 1
    assert api.count("vla_refused_before_produce_total", code="invalid_robot_type") == 0


async def test_unsafe_actions_come_with_the_report_and_say_which_check_failed() -> None:
    api = Api()
    report = SafetyReport(score=0.1, mode=SafetyMode.SAFETY_MODE_REJECT, checks={"range": 0.1, "dims": 1.0})
    api.gateway.answer = refuses(stage=Stage.STAGE_ACTION_GATE, code="unsafe_action", safety=report)
    document = assert_problem(await api.post(body()), 422, "unsafe_action")
    assert document["safety"]["checks"] == {"range": 0.1, "dims": 1.0}
    assert api.count("vla_safety_rejections_total", model="test-model", check="range") == 1
    assert api.count("vla_safety_checks_total", model="test-model", passed="false") == 1


async def test_a_refusal_that_passes_says_when_to_come_back() -> None:
    api = Api()
    api.gateway.answer = refuses(code="no_live_worker", status=503, retry_after_s=1.2)
    answer = await api.post(body())
    assert_problem(answer, 503, "no_live_worker")
    assert answer.headers["retry-after"] == "2"


async def test_late_actions_are_never_delivered_as_fresh() -> None:
    api = Api()

    def late(request: InferenceRequest) -> Reply:
        outcome = chunk_outcome(request)
        outcome.request.deadline_ms = 1
        return Reply("c", outcome.SerializeToString())

    api.gateway.answer = late
    document = assert_problem(await api.post(body()), 504, "expired")
    assert document["recorded"] is False
    assert "values" not in json.dumps(document)


async def test_a_frame_that_kafka_took_late_is_not_fresh_by_the_deadline_that_kafka_gave_it() -> None:
    api = Api()

    def answers_later(request: InferenceRequest) -> Reply:
        time.sleep(0.002)
        return Reply("c", chunk_outcome(request).SerializeToString())

    api.gateway.answer = answers_later
    assert_problem(await api.post(body(options={"ttl_ms": 1})), 504, "expired")


async def test_a_replay_is_the_first_result_and_says_whether_it_may_be_executed() -> None:
    api = Api()

    def replays(request: InferenceRequest) -> Reply:
        return Reply("c", chunk_outcome(request).SerializeToString(), replayed=True, expired=True)

    api.gateway.answer = replays
    answer = await api.post(body())
    assert answer.status_code == 200
    document = answer.json()
    assert (document["replayed"], document["expired"]) == (True, True)
    assert set(document["timings_ms"]) == {"total"}
    assert api.count("vla_safety_checks_total", model="test-model", passed="true") == 0


@pytest.mark.parametrize("value", [b"\xff\xff", b"", Outcome(row_id="x").SerializeToString()])
async def test_an_outcome_that_cannot_be_read_is_500(value: bytes) -> None:
    api = Api()
    api.gateway.answer = lambda request: Reply("c", value)
    assert_problem(await api.post(body()), 500, "internal")


@pytest.mark.parametrize("key", [None, "nonsense", "vla_abcdefgh_" + "x" * 43])
async def test_without_a_valid_key_the_answer_is_401(key: str | None) -> None:
    api = Api()
    answer = await api.post(body(), key=key)
    assert_problem(answer, 401, "unauthenticated")
    assert answer.headers["www-authenticate"].startswith("Bearer")
    assert not api.gateway.asked


async def test_labels_are_never_what_a_caller_wrote() -> None:
    api = Api()
    api.gateway.answer = refuses()
    await api.post(body(robot_type="my-own-words"))
    await api.post(body(model="my-own-words"))
    exposition = api.metrics.exposition().decode()
    assert "my-own-words" not in exposition
    assert 'robot_type="other"' in exposition


async def test_a_client_that_leaves_is_not_waited_for() -> None:
    api = Api()
    api.gateway.answer = lambda request: None
    raw = json.dumps(body()).encode()
    messages = [{"type": "http.request", "body": raw, "more_body": False}]
    left = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        if messages:
            return messages.pop(0)
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    async with api.client() as client:
        headers = [(name.lower().encode(), value.encode()) for name, value in client.headers.items()]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/v1/inference", "raw_path": b"/v1/inference", "query_string": b"", "root_path": "",
        "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    call = asyncio.create_task(api.app(scope, receive, send))
    await api.gateway.was_asked.wait()
    left.set()
    await call
    assert api.gateway.futures[0].cancelled()
    counted = api.count(
        "vla_inference_requests_total", model="test-model", robot_type="test_arm", status="disconnected"
    )
    assert counted == 1


async def test_requests_are_measured_by_route_and_never_by_path() -> None:
    api = Api()
    await api.post(body())
    async with api.client() as client:
        await client.get("/nowhere/at/all")
        await client.get(f"/v1/inferences/{uuid.uuid4()}")
    assert api.count("vla_http_requests_total", route="/v1/inference", method="POST", status="200") == 1
    assert api.count("vla_http_requests_total", route="unmatched", method="GET", status="404") == 1
    assert api.count("vla_http_requests_total", route="/v1/inferences/{request_id}", method="GET", status="404") == 1


async def test_what_nobody_caught_is_500_without_internals() -> None:
    api = Api()

    def breaks(request: InferenceRequest) -> Reply:
        raise RuntimeError("the secret is xyzzy")

    api.gateway.answer = breaks
    answer = await api.post(body())
    assert_problem(answer, 500, "internal")
    assert "xyzzy" not in answer.text


async def test_one_request_never_gets_the_answer_of_another() -> None:
    api = Api()
    api.gateway.answer = acts
    answers = await asyncio.gather(*(api.post(body(robot_id=f"arm-{i}")) for i in range(20)))
    assert [answer.json()["robot_id"] for answer in answers] == [f"arm-{i}" for i in range(20)]


async def test_a_refusal_that_is_in_no_log_is_not_called_recorded() -> None:
    api = Api()
    refusal = Outcome(rejection=Rejection(code="undecodable", status=400))
    api.gateway.answer = lambda request: Reply("c", refusal.SerializeToString())
    assert assert_problem(await api.post(body()), 400, "undecodable")["recorded"] is False
