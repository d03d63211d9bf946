"""One request is one trace across every process that it passes, and a refusal's trace ends where it was refused."""

from __future__ import annotations

import secrets

import pytest

from tests.collector import Collector, SeenSpan
from tests.e2e.running_stack import RunningStack, observation

pytestmark = [pytest.mark.stack, pytest.mark.slow]


def test_a_request_is_one_trace_from_the_api_through_kafka_and_back(stack: RunningStack, collector: Collector) -> None:
    trace_id, robot_span = secrets.token_hex(16), secrets.token_hex(8)
    body = observation(seed=701)
    answer = stack.post(body, traceparent=f"00-{trace_id}-{robot_span}-01")
    assert answer.status_code == 200, answer.text

    spans = {span.name: span for span in collector.trace(trace_id, lambda found: len(found) >= 6)}
    parents = {name: _name_of(span.parent_id, spans, robot_span) for name, span in spans.items()}
    assert parents == {
        "request": "the robot",
        "request gate": "request",
        "queue": "request gate",
        "inference": "request gate",
        "action gate": "inference",
        "reply": "action gate",
    }
    assert [spans[name].service for name in parents] == [
        *("vlastream-api", "vlastream-gate", "vlastream-gpu", "vlastream-gpu", "vlastream-gate", "vlastream-api"),
    ]
    assert spans["queue"].end_ns <= spans["inference"].start_ns < spans["inference"].end_ns
    assert spans["request gate"].attributes["vlastream.request_id"] == body["request_id"]
    assert not any(span.error for span in spans.values())


def test_the_trace_of_a_refusal_says_who_refused_it_and_never_reaches_a_device(
    stack: RunningStack, collector: Collector
) -> None:
    trace_id = secrets.token_hex(16)
    answer = stack.post(observation(seed=702, robot_type="UNKNOWN"), traceparent=f"00-{trace_id}-{'1' * 16}-01")
    assert answer.status_code == 422, answer.text
    spans = {span.name: span for span in collector.trace(trace_id, lambda found: len(found) >= 4)}
    assert set(spans) == {"request", "request gate", "action gate", "reply"}
    assert spans["request gate"].error == spans["action gate"].error == "invalid_robot_type"


def _name_of(span_id: str, spans: dict[str, SeenSpan], robot_span: str) -> str:
    if span_id == robot_span:
        return "the robot"
    return next(name for name, span in spans.items() if span.span_id == span_id)
