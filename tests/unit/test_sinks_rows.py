"""What outcomes become in Postgres."""

from __future__ import annotations

import json
import math
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Poison
from schemas.codes import Code
from schemas.messages import ActionMatrix, Outcome, SafetyMode, SafetyReport, Violation
from schemas.topics import REQUESTS
from sinks.outcomes import decode_outcome, status
from sinks.rows import CATEGORIES, MAX_NAME_CHARACTERS, category, incident_row, inference_row, severity
from tests import factories as f


def test_a_row_says_what_was_asked_done_and_how_long_it_took() -> None:
    outcome = f.outcome(results_offset=41)
    row = inference_row(outcome, f.record(outcome.SerializeToString(), partition=2, offset=77), "none")
    assert row["id"] == uuid.UUID(outcome.row_id)
    assert (row["customer_id"], row["robot_type"], row["model"]) == (f.CUSTOMER, f.ROBOT_TYPE, f.MODEL)
    assert (row["instruction"], row["instruction_category"]) == (f.INSTRUCTION, "pick")
    assert row["image_shape"] == [48, 64, 3]
    assert row["action_vector"] == pytest.approx([0.01] * 7)
    assert row["action_magnitude"] == pytest.approx(math.sqrt(7) * 0.01)
    assert (len(row["actions"]), row["action_horizon"], row["action_dim"]) == (56, 8, 7)
    assert (row["status"], row["code"], row["http_status"]) == ("success", None, 200)
    assert row["validation_errors"] is None
    assert (row["latency_total_ms"], row["latency_queue_ms"], row["latency_gpu_ms"]) == (20, 3, 10)
    assert (row["source_topic"], row["results_offset"]) == (REQUESTS, 41)
    assert (row["outcome_partition"], row["outcome_offset"]) == (2, 77)
    assert row["safety_flags"] == {"mode": "reject", "modified": False, "checks": {"finite": 1.0, "range": 0.95}}


def test_a_refusal_says_which_fields_were_wrong() -> None:
    violations = [
        Violation(field="instruction", reason="too_short"),
        Violation(field="image.base", reason="blank"),
        Violation(field="image.base", reason="too_small"),
        Violation(reason="duplicate"),
    ]
    outcome = f.outcome(rejection=f.rejection(violations=violations))
    row = inference_row(outcome, f.record(b""), "none")
    assert row["validation_errors"] == {"instruction": "too_short", "image.base": "blank", "request": "duplicate"}
    assert (row["status"], row["code"], row["http_status"]) == ("rejected", "invalid_instruction", 422)
    assert row["actions"] is row["action_vector"] is row["safety_score"] is None


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code.UNSAFE_ACTION, "safety_rejected"),
        (Code.QUOTA, "rate_limited"),
        (Code.EXPIRED, "timeout"),
        (Code.SUPERSEDED, "superseded"),
        (Code.NO_WORKER, "error"),
        (Code.POLICY_FAILED, "error"),
        (Code.INVALID_IMAGE, "rejected"),
        (Code.DUPLICATE, "rejected"),
        (Code.STOPPED, "rejected"),
    ],
)
def test_the_status_follows_from_the_code(code: Code, expected: str) -> None:
    assert status(f.outcome(rejection=f.rejection(code))) == expected


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("pick up the red block", "pick"),
        ("Put the cup on the shelf", "place"),
        ("push the green block to the left", "push"),
        ("please OPEN the drawer", "open"),
        ("reach the blue block", "navigate"),
        ("sing a song for me", "other"),
        ("", "other"),
    ],
)
def test_the_first_word_that_names_a_category_decides(instruction: str, expected: str) -> None:
    assert category(instruction) == expected


def test_no_word_names_two_categories() -> None:
    words = [word for words in CATEGORIES.values() for word in words]
    assert len(words) == len(set(words))


def test_a_delivered_safe_chunk_is_no_incident() -> None:
    assert incident_row(f.outcome(), 0.7) is None


def test_a_refusal_by_the_request_gate_is_no_incident() -> None:
    assert incident_row(f.outcome(rejection=f.rejection()), 0.7) is None


def test_a_refused_chunk_is_an_incident_named_after_its_worst_check() -> None:
    report = f.safety_report(0.2, checks={"range": 0.9, "velocity": 0.2})
    outcome = f.outcome(rejection=f.rejection(Code.UNSAFE_ACTION, safety=report))
    incident = incident_row(outcome, 0.7)
    assert incident is not None
    assert (incident["action_taken"], incident["violation_type"]) == ("rejected", "velocity")
    assert (incident["severity"], incident["safety_score"]) == ("high", 0.2)
    assert incident["id"] == uuid.UUID(outcome.row_id)


def test_a_clamped_chunk_keeps_what_the_policy_wanted() -> None:
    chunk = f.action_chunk(
        safety=f.safety_report(0.4, modified=True, mode=SafetyMode.SAFETY_MODE_CLAMP),
        actions=f.matrix(1, 2, [1.0, 1.0]),
        result=f.inference_result(chunk=f.matrix(1, 2, [3.0, math.nan])),
    )
    incident = incident_row(f.outcome(chunk=chunk), 0.7)
    assert incident is not None
    assert incident["action_taken"] == "clamped"
    assert incident["original_action"] == {"horizon": 1, "dim": 2, "values": [3.0, None]}
    assert incident["safe_action"] == {"horizon": 1, "dim": 2, "values": [1.0, 1.0]}


def test_a_chunk_below_the_score_in_monitor_mode_is_logged() -> None:
    chunk = f.action_chunk(safety=f.safety_report(0.5, mode=SafetyMode.SAFETY_MODE_MONITOR))
    incident = incident_row(f.outcome(chunk=chunk), 0.7)
    assert incident is not None
    assert (incident["action_taken"], incident["severity"], incident["safe_action"]) == ("logged", "low", None)


@pytest.mark.parametrize(
    ("score", "expected"), [(0.0, "critical"), (0.1, "high"), (0.3, "medium"), (0.5, "low"), (0.69, "low")]
)
def test_severity_follows_from_the_score(score: float, expected: str) -> None:
    assert severity(score) == expected


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xff\xff\xff",
        f.outcome(row_id="").SerializeToString(),
        f.outcome(row_id="no-uuid").SerializeToString(),
        Outcome(row_id=str(uuid.uuid4())).SerializeToString(),
        f.outcome(decided_at_ms=-1).SerializeToString(),
        f.outcome(decided_at_ms=2**62).SerializeToString(),
        f.outcome(results_offset=-5).SerializeToString(),
        f.outcome(chunk=f.action_chunk(actions=ActionMatrix(horizon=2, dim=2, values=[1.0]))).SerializeToString(),
    ],
    ids=["empty", "bytes", "no-id", "no-uuid", "no-request", "time-below", "time-beyond", "offset-below", "shape"],
)
def test_a_value_that_no_row_can_be_made_of_is_poison(value: bytes) -> None:
    with pytest.raises(Poison):
        decode_outcome(f.record(value))


@given(
    text=st.text(max_size=300),
    score=st.floats(),
    side=st.integers(0, 2**32 - 1),
    number=st.integers(0, 2**64 - 1),
    values=st.lists(st.floats(width=32), min_size=4, max_size=4),
)
def test_whatever_a_robot_says_the_row_fits_the_table(
    text: str, score: float, side: int, number: int, values: list[float]
) -> None:
    summary = f.request_summary(
        request_id=text, robot_id=text, robot_type=text, model=text, instruction=text, episode_id=text, step=number
    )
    summary.images[0].width = summary.images[0].height = side
    chunk = f.action_chunk(
        actions=f.matrix(2, 2, values),
        result=f.inference_result(seed=number, chunk=f.matrix(2, 2, values)),
        safety=SafetyReport(score=score, modified=True, checks={text: score}, violations=[Violation(detail=text)]),
    )
    row = inference_row(f.outcome(request=summary, chunk=chunk), f.record(b""), "none")
    incident = incident_row(f.outcome(request=summary, chunk=chunk), 0.7)
    assert incident is not None
    for name in ("request_id", "robot_id", "robot_type", "model"):
        assert len(row[name]) <= MAX_NAME_CHARACTERS
        assert "\x00" not in row[name]
    assert row["image_shape"] is None or max(row["image_shape"]) < 2**31
    assert 0 <= row["safety_score"] <= 1
    for value in (row["safety_flags"], incident["violation_details"], incident["original_action"]):
        assert "\\u0000" not in json.dumps(value, allow_nan=False)
