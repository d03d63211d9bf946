"""Timings add up, whatever the clocks of the stages say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_api.answers import PARTS, chunk_document, timings_ms
from schemas.messages import InferenceRequest, StageTimes
from tests.unit.api_case import NOW_US, chunk_outcome

_MARK = st.integers(-(2**40), 2**60)


@given(st.lists(_MARK, min_size=6, max_size=6), _MARK, st.integers(0, 2**40))
def test_parts_are_never_negative_and_add_up_to_the_total(marks: list[int], received: int, took: int) -> None:
    names = (
        "gate_start_us", "gate_end_us", "infer_start_us", "infer_end_us", "action_gate_start_us", "action_gate_end_us",
    )  # fmt: skip
    times = StageTimes(**dict(zip(names, marks, strict=True)))
    timings = timings_ms(times, received_us=received, answered_us=received + took)
    assert timings["total"] == took / 1000
    assert sum(timings[name] for name in PARTS) == pytest.approx(timings["total"], rel=1e-9, abs=1e-6)
    assert all(timings[name] >= 0 for name in PARTS)


def test_each_part_is_the_time_between_its_marks() -> None:
    outcome = chunk_outcome(InferenceRequest())
    timings = timings_ms(outcome.times, received_us=NOW_US, answered_us=NOW_US + 7_000)
    assert timings == {
        "total": 7.0,
        "ingest": 1.0,
        "request_gate": 1.0,
        "queue": 2.0,
        "inference": 1.0,
        "results": 0.5,
        "action_gate": 0.5,
        "reply": 1.0,
    }


def test_a_stage_that_never_was_takes_no_time() -> None:
    times = StageTimes(gate_start_us=NOW_US + 10, gate_end_us=NOW_US + 20)
    timings = timings_ms(times, received_us=NOW_US, answered_us=NOW_US + 100)
    assert (timings["ingest"], timings["request_gate"], timings["reply"]) == (0.01, 0.01, 0.08)
    assert timings["inference"] == 0


def test_an_episode_that_is_none_is_null() -> None:
    document = chunk_document(chunk_outcome(InferenceRequest()), timings={}, replayed=False, expired=False)
    assert document["episode_id"] is None
