"""What a person with curl sees: the README's request, its repetition, and every kind of bad input."""

from __future__ import annotations

import base64
import json
import math
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from runtime.settings import Settings
from sinks.books import read_books
from tests import pictures
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "inference_request.json"


def image(data: bytes) -> dict[str, Any]:
    return {"images": [{"camera": "base", "data": base64.b64encode(data).decode()}]}


def test_the_readmes_request_is_answered_with_gated_actions(stack: RunningStack) -> None:
    body = json.loads(EXAMPLE.read_text())
    answer = stack.post(body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    actions = found["actions"]
    assert (actions["horizon"], actions["dim"]) == (8, 7)
    assert all(math.isfinite(value) for row in actions["values"] for value in row)
    assert actions["names"][-1] == "gripper"
    assert found["safety"]["score"] == min(found["safety"]["checks"].values()) >= 0.7
    assert not found["replayed"]
    timings = dict(found["timings_ms"])
    assert timings.pop("total") == pytest.approx(sum(timings.values()), abs=0.01)
    again = stack.post(body)
    assert (again.status_code, again.json()["code"]) == (422, "duplicate")


def test_the_same_request_id_gets_the_first_result_again(stack: RunningStack) -> None:
    body = observation(101)
    first, second = stack.post(body).json(), stack.post(body).json()
    assert second["replayed"]
    assert second["result_id"] == first["result_id"]
    assert second["actions"] == first["actions"]
    reused = stack.post({**body, "step": 5})
    assert (reused.status_code, reused.json()["code"]) == (422, "request_id_reused")
    assert stack.post(body).json()["result_id"] == first["result_id"]


def test_an_answer_can_be_looked_up_later(stack: RunningStack) -> None:
    body = observation(102)
    stack.post(body)
    url = f"{stack.api}/v1/inferences/{body['request_id']}"

    def found() -> httpx.Response:
        return httpx.get(url, headers=stack.headers)

    stack.wait_for(lambda: found().status_code == 200, "the row did not come")
    assert body["request_id"] in found().text
    unknown = httpx.get(f"{stack.api}/v1/inferences/{uuid.uuid4()}", headers=stack.headers)
    assert unknown.status_code == 404


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"robot_type": "UNKNOWN"}, 422, "invalid_robot_type"),
        ({"robot_type": "tabletop_amr"}, 422, "invalid_robot_type"),
        ({"model": "nobody"}, 404, "unknown_model"),
        ({"instruction": ""}, 422, "invalid_instruction"),
        ({"instruction": "reach"}, 422, "invalid_instruction"),
        ({"instruction": "reach it now " * 800}, 422, "invalid_instruction"),
        ({"instruction": "reach the\x00 block"}, 422, "invalid_instruction"),
        ({"state": [0.0] * 7}, 422, "invalid_state"),
        ({"state": [math.nan] + [0.0] * 7}, 422, "invalid_state"),
        ({"state": [math.inf] + [0.0] * 7}, 422, "invalid_state"),
        ({"state": "high"}, 400, "malformed"),
        ({"images": []}, 422, "invalid_image"),
        (image(b"no picture at all"), 422, "invalid_image"),
        (image(pictures.jpeg(1, 1)), 422, "invalid_image"),
        (image(pictures.jpeg(20_000, 64)), 422, "invalid_image"),
        (image(pictures.jpeg()[:2000]), 422, "invalid_image"),
        (image(pictures.flat(127)), 422, "invalid_image"),
        (image(bytes(600_000)), 413, "too_large"),
        ({"options": {"ttl_ms": 0}}, 422, "invalid_request"),
        ({"options": {"ttl_ms": -5}}, 422, "invalid_request"),
        ({"robot_id": None}, 400, "malformed"),
        ({"surprise": 1}, 400, "malformed"),
    ],
)
def test_bad_input_is_told_apart(stack: RunningStack, changes: dict[str, Any], status: int, code: str) -> None:
    body = observation(200, step=hash(str(changes)) % 10_000) | changes
    answer = httpx.post(
        f"{stack.api}/v1/inference",
        content=json.dumps(body),  # the standard library writes NaN and Infinity as robots' encoders do
        headers={**stack.headers, "Content-Type": "application/json"},
        timeout=30,
    )
    found = answer.json()
    assert (answer.status_code, found["code"]) == (status, code), answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert found["detail"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Bearer wrong"}, 401), ({"Authorization": "Basic dTpw"}, 401)],
)
def test_no_key_and_a_wrong_key_are_refused(stack: RunningStack, headers: dict[str, str], status: int) -> None:
    answer = httpx.post(f"{stack.api}/v1/inference", json=observation(300), headers=headers)
    assert answer.status_code == status
    assert "WWW-Authenticate" in answer.headers


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'"text"'])
def test_what_is_not_a_json_object_is_malformed(stack: RunningStack, content: bytes) -> None:
    answer = httpx.post(
        f"{stack.api}/v1/inference", content=content, headers={**stack.headers, "Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed")


def test_an_action_above_its_range_is_unsafe(stack: RunningStack) -> None:
    body = {"robot_type": "tabletop_arm", "actions": [[1.5, 0, 0, 0, 0, 0, 0]]}
    answer = httpx.post(f"{stack.api}/v1/safety/evaluate", json=body, headers=stack.headers)
    assert (answer.status_code, answer.json()["code"]) == (422, "unsafe_action")


def test_all_roles_metrics_are_on_one_page(stack: RunningStack) -> None:
    text = httpx.get(f"{stack.api}/metrics/federate", timeout=30).text
    for role in ("api", "gate", "gpu"):
        assert f'role="{role}"' in text
    for name in (
        "vla_inference_requests_total",
        "vla_inference_duration_seconds",
        "vla_gpu_utilization_percent",
        "vla_gpu_memory_utilization_percent",
        "vla_gpu_memory_used_bytes",
        "vla_safety_checks_total",
        "vla_safety_rejections_total",
        "vla_validation_failures_total",
        "vla_queue_depth",
    ):
        assert name in text


def test_the_books_balance_after_all_of_it(stack: RunningStack, settings: Settings) -> None:
    books = read_books(settings, wait_s=60)
    assert books.balanced, books.explain()
