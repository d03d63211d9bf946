"""The action gate's rules: every step, every dimension, no mode that lets NaN through."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from schemas.action_rules import CHECKS, Verdict, evaluate_chunk
from schemas.cards import EmbodimentCard
from schemas.messages import SafetyMode
from tests.cards import embodiment

REJECT, CLAMP, MONITOR = SafetyMode.SAFETY_MODE_REJECT, SafetyMode.SAFETY_MODE_CLAMP, SafetyMode.SAFETY_MODE_MONITOR
CENTRE = np.array([0.5, 0.5], np.float32)


def chunk(*rows: tuple[float, float, float]) -> NDArray[np.float32]:
    return np.array(rows or [(0.01, 0.0, 0.0)] * 4, np.float32)


def judge(
    actions: NDArray[np.float32],
    *,
    card: EmbodimentCard | None = None,
    state: NDArray[np.float32] | None = CENTRE,
    previous: NDArray[np.float32] | None = None,
    mode: SafetyMode.ValueType = REJECT,
) -> Verdict:
    return evaluate_chunk(actions, card or embodiment(), state=state, previous=previous, mode=mode, min_score=0.7)


def test_a_good_chunk_scores_one_in_every_check() -> None:
    verdict = judge(chunk())
    assert verdict.checks == dict.fromkeys(CHECKS, 1.0)
    assert verdict.passed
    assert not verdict.violations


@pytest.mark.parametrize(
    ("actions", "check", "reason"),
    [
        (chunk((0.01, 0, 0), (0.01, 0.2, 0)), "range", "out_of_range"),
        (chunk((0.09, 0, 0), (0.09, 0, 0)), "velocity", "too_fast"),
        (chunk((0.08, 0, 0), (-0.08, 0, 0), (0.08, 0, 0)), "jerk", "too_jerky"),
        (chunk((0, 0, 0.5)), "gripper", "gripper_between"),
    ],
)
def test_a_breach_in_any_step_is_refused_and_named(actions: NDArray[np.float32], check: str, reason: str) -> None:
    verdict = judge(actions)
    assert not verdict.passed
    assert verdict.worst_check == check or verdict.checks[check] <= 0.5
    assert reason in {breach.reason for breach in verdict.violations}
    assert verdict.actions is actions


def test_the_workspace_is_checked_along_the_whole_chunk() -> None:
    near_edge = np.array([0.95, 0.5], np.float32)
    verdict = judge(chunk(*[(0.03, 0, 0)] * 4), state=near_edge)
    assert verdict.checks["workspace"] == pytest.approx(0.3, abs=1e-3)
    assert not verdict.passed


def test_a_robot_outside_its_workspace_may_come_back_in() -> None:
    outside = np.array([1.05, 0.5], np.float32)
    assert judge(chunk(*[(-0.03, 0, 0)] * 4), state=outside).checks["workspace"] == 1.0


def test_a_jump_from_the_previous_chunk_is_refused_whatever_step_was_reached() -> None:
    card = embodiment()
    previous = chunk(*[(-0.08, 0.08, 0)] * 4)
    verdict = judge(chunk(*[(0.079, 0.0, 0)] * 4), card=card, previous=previous)
    assert verdict.checks["continuity"] < 0.7
    reachable = np.concatenate([previous, chunk((0.0, 0.0, 0.0))])
    assert judge(chunk(*[(0.079, 0.0, 0)] * 4), card=card, previous=reachable).checks["continuity"] == 1.0


@pytest.mark.parametrize("mode", [REJECT, CLAMP, MONITOR])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_mode_lets_a_value_through_that_is_not_finite(mode: SafetyMode.ValueType, bad: float) -> None:
    verdict = judge(chunk((0, 0, 0), (0, bad, 0)), mode=mode)
    assert not verdict.passed
    assert verdict.score == 0.0
    assert verdict.violations[0].field == "actions[1].dy"


@pytest.mark.parametrize("shape", [(4, 2), (0, 3), (0, 0), (4, 4), (12,)])
@pytest.mark.parametrize("mode", [REJECT, CLAMP, MONITOR])
def test_a_wrong_shape_is_refused_in_every_mode(shape: tuple[int, ...], mode: SafetyMode.ValueType) -> None:
    verdict = judge(np.zeros(shape, np.float32), mode=mode)
    assert not verdict.passed
    assert verdict.checks == {"dims": 0.0}


def test_monitor_delivers_unchanged_and_keeps_the_score() -> None:
    actions = chunk((0.2, 0, 0))
    verdict = judge(actions, mode=MONITOR)
    assert verdict.passed
    assert verdict.score <= 0.5
    assert not verdict.modified
    assert np.array_equal(verdict.actions, actions)


def test_clamp_brings_a_chunk_into_its_limits_and_says_so() -> None:
    verdict = judge(chunk((0.2, -0.3, 0.4)), mode=CLAMP)
    assert verdict.passed
    assert verdict.modified
    assert np.allclose(verdict.actions, [(0.08, -0.08, 0.0)])


def test_an_unverified_card_is_monitored_whatever_was_asked_for() -> None:
    verdict = judge(chunk((0.2, 0, 0)), card=embodiment(verified=False))
    assert verdict.mode == MONITOR
    assert verdict.passed


def test_an_unspecified_mode_rejects() -> None:
    assert judge(chunk(), mode=SafetyMode.SAFETY_MODE_UNSPECIFIED).mode == REJECT


finite_chunks = arrays(np.float32, (4, 3), elements=st.floats(-0.5, 1.5, width=32))


@given(finite_chunks, st.sampled_from([REJECT, CLAMP, MONITOR]))
def test_scores_stay_between_zero_and_one_and_decide(actions: NDArray[np.float32], mode: SafetyMode.ValueType) -> None:
    verdict = judge(actions, mode=mode)
    assert all(0.0 <= score <= 1.0 for score in verdict.checks.values())
    assert verdict.score == min(verdict.checks.values())
    assert verdict.passed == (verdict.score >= 0.7 or mode == MONITOR)
    assert verdict.report().score == verdict.score


@given(finite_chunks)
def test_what_clamp_lets_through_holds_every_limit(actions: NDArray[np.float32]) -> None:
    verdict = judge(actions, mode=CLAMP)
    if verdict.passed:
        assert judge(verdict.actions, mode=REJECT).passed
