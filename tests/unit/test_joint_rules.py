"""The action gate on joints: targets, speeds, limits that are open, grippers that are two."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from robot_client.axes import Axes
from schemas.action_rules import Verdict, evaluate_chunk
from schemas.action_space import ArmControl, Gripper, Space
from schemas.cards import ActionDim, ActionKind, EmbodimentCard, StateDim
from schemas.hold import HoldRule
from schemas.messages import SafetyMode
from tests.cards import embodiment

REJECT, CLAMP = SafetyMode.SAFETY_MODE_REJECT, SafetyMode.SAFETY_MODE_CLAMP
STATE = np.array([0.0, 0.0], np.float32)


def joints(kind: ActionKind = ActionKind.ABSOLUTE, **changes: object) -> EmbodimentCard:
    """Two joints at 10 Hz that may do 1 rad/s; the second turns without end."""
    control = {
        ActionKind.ABSOLUTE: ArmControl.JOINT_POSITION,
        ActionKind.DELTA: ArmControl.JOINT_DELTA,
        ActionKind.VELOCITY: ArmControl.JOINT_VELOCITY,
    }[kind]
    fields: dict[str, object] = {
        "state": (StateDim(name="a", unit="rad"), StateDim(name="b", unit="rad")),
        "actions": (
            ActionDim(name="a", unit="rad", kind=kind, low=-2, high=2, max_velocity=1),
            ActionDim(name="b", unit="rad", kind=kind, max_velocity=1),
        ),
        "workspace": None,
        "gripper": None,
        "space": Space(name="joints", control=control, state_index=(0, 1)),
    }
    return embodiment(**{**fields, **changes})


def judge(card: EmbodimentCard, *rows: tuple[float, ...], mode: SafetyMode.ValueType = REJECT) -> Verdict:
    return evaluate_chunk(np.array(rows, np.float32), card, state=STATE, previous=None, mode=mode, min_score=0.7)


def test_the_first_target_counts_from_where_the_joint_stands() -> None:
    assert judge(joints(), (0.09, 0), (0.18, 0)).passed
    jump = judge(joints(), (1.0, 0), (1.05, 0))
    assert not jump.passed
    assert [(b.field, b.reason) for b in jump.violations] == [("actions[0].a", "too_fast")]


def test_a_joint_without_a_range_is_limited_by_its_speed_alone() -> None:
    turning = [(0.0, 0.09 * i) for i in range(1, 200)]
    assert judge(joints(), *turning).passed
    assert not judge(joints(), (0, 0.09), (0, 0.3)).passed


@pytest.mark.parametrize(("low", "high", "value"), [(None, 1.0, 2.5), (-1.0, None, -2.5)])
def test_a_range_that_is_open_to_one_side_holds_to_the_other(
    low: float | None, high: float | None, value: float
) -> None:
    free = ActionDim(name="a", unit="rad", kind=ActionKind.BINARY, low=low, high=high)
    card = joints(actions=(free,), space=Space(), verified=False)
    assert evaluate_chunk(
        np.array([[value]], np.float32), card, state=None, previous=None, mode=REJECT, min_score=0.7
    ).checks["range"] < 0.7  # fmt: skip
    assert judge(card, (-value,)).checks["range"] == 1.0


def test_speeds_are_held_to_their_limit_whatever_the_rate() -> None:
    card = joints(ActionKind.VELOCITY)
    assert judge(card, (1.0, -1.0)).passed
    fast = judge(card, (1.5, 0.0))
    assert {b.reason for b in fast.violations} == {"too_fast"}
    assert judge(card, (1.5, 0.0), mode=CLAMP).actions[0].tolist() == [1.0, 0.0]


def test_without_a_control_rate_what_was_not_checked_is_not_reported() -> None:
    verdict = judge(joints(control_rate_hz=None), (1.9, 0))
    assert verdict.passed
    assert not {"velocity", "jerk"} & set(verdict.checks)
    assert not judge(joints(control_rate_hz=None), (2.5, 0)).passed


TARGETS = st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=8)


@given(TARGETS)
def test_clamping_slows_targets_down_to_what_the_joints_can_do(rows: list[tuple[float, float]]) -> None:
    verdict = judge(joints(), *rows, mode=CLAMP)
    assert verdict.passed
    asked: NDArray[np.float32] = np.array(rows, np.float32)
    # What was within the limits already is not touched.
    assert verdict.modified or np.array_equal(verdict.actions, asked)


def test_two_grippers_are_judged_and_clamped_alike() -> None:
    finger = ActionDim(name="left", unit="1", kind=ActionKind.BINARY, low=0, high=1)
    card = joints(
        actions=(finger, ActionDim(name="right", unit="1", kind=ActionKind.BINARY, low=0, high=1)),
        gripper=Gripper(action_index=0, further_indices=(1,), open_value=0, closed_value=1, tolerance=0.1),
        space=Space(),
    )
    assert judge(card, (0.0, 1.0)).passed
    assert not judge(card, (0.0, 0.5)).passed
    assert judge(card, (0.0, 0.6), mode=CLAMP).actions[0].tolist() == [0.0, 1.0]


def test_a_robot_that_holds_stops_its_speeds_and_keeps_its_targets() -> None:
    last = np.array([0.5, 0.25], np.float32)
    for kind, held in ((ActionKind.VELOCITY, [0, 0]), (ActionKind.DELTA, [0, 0]), (ActionKind.ABSOLUTE, [0.5, 0.25])):
        action = HoldRule.of(joints(kind)).action(last)
        assert action is not None
        assert action.tolist() == held


def test_a_control_loop_divides_deltas_among_its_ticks_and_gives_speeds_to_each_whole() -> None:
    delta, speed, target = (
        Axes.of(joints(kind)) for kind in (ActionKind.DELTA, ActionKind.VELOCITY, ActionKind.ABSOLUTE)
    )
    assert delta.moves == (True, True)
    assert speed.moves == target.moves == (False, False)
    assert delta.hold.moves == speed.hold.moves == (True, True)
    assert target.hold.moves == (False, False)
