"""Conversions between action conventions, against scipy's Rotation and the published rules of the field."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation as Oracle

from schemas.action_space import ArmControl, Convention, Frame, Gripper, Rotation, Space
from schemas.conversions import CannotConvert, PolicyActions, conversion
from schemas.rotations import delta_between, from_matrix, move, rotate, to_matrix

FORMS = st.sampled_from(list(Rotation))
#: Rotations everywhere on the sphere, and exactly those where notations have their corners.
ANGLES = st.one_of(st.floats(-3.2, 3.2), st.sampled_from([0.0, np.pi / 2, -np.pi / 2, np.pi, -np.pi, 1e-9]))
TURNS = st.tuples(ANGLES, ANGLES, ANGLES).map(lambda angles: Oracle.from_euler("xyz", angles))
POINTS = st.tuples(*[st.floats(-2, 2)] * 3).map(np.array)
GRIPPERS = st.tuples(st.floats(-2, 2), st.floats(-2, 2)).filter(lambda ends: abs(ends[0] - ends[1]) > 1e-3)


def written(turn: Oracle, form: Rotation) -> NDArray[np.float64]:
    """As scipy writes a rotation."""
    quaternion = turn.as_quat()
    match form:
        case Rotation.AXIS_ANGLE:
            return np.asarray(turn.as_rotvec())
        case Rotation.EULER_XYZ:
            # scipy warns where two of the angles turn about one axis; ours gives all of it to the roll.
            return from_matrix(turn.as_matrix(), form)
        case Rotation.QUATERNION_XYZW:
            return np.asarray(quaternion)
    return np.roll(quaternion, 1)


def read(values: NDArray[np.float64], form: Rotation) -> Oracle:
    match form:
        case Rotation.AXIS_ANGLE:
            return Oracle.from_rotvec(values)
        case Rotation.EULER_XYZ:
            return Oracle.from_euler("xyz", values)
        case Rotation.QUATERNION_XYZW:
            return Oracle.from_quat(values)
    return Oracle.from_quat(np.roll(values, -1))


def gap(one: Oracle, other: Oracle) -> float:
    """Angle between two rotations, radians."""
    return float((one * other.inv()).magnitude())


@given(TURNS, FORMS, FORMS)
def test_a_rotation_in_any_notation_is_the_one_that_scipy_reads(
    turn: Oracle, source: Rotation, target: Rotation
) -> None:
    assert np.allclose(to_matrix(written(turn, source), source), turn.as_matrix(), atol=1e-9)
    assert gap(read(rotate(written(turn, source), source, target), target), turn) < 1e-6


@given(st.lists(TURNS, min_size=1, max_size=4), FORMS, FORMS)
def test_many_rotations_at_once_are_the_same_as_one_by_one(
    turns: list[Oracle], source: Rotation, target: Rotation
) -> None:
    values = np.stack([written(turn, source) for turn in turns])
    one_by_one = np.stack([rotate(row, source, target) for row in values])
    assert np.allclose(rotate(values, source, target), one_by_one, atol=1e-12)


@given(POINTS, TURNS, POINTS, TURNS, st.sampled_from(list(Frame)))
def test_a_pose_moved_by_a_delta_is_as_far_from_where_it_was_as_the_delta(
    position: NDArray[np.float64], pose: Oracle, shift: NDArray[np.float64], turn: Oracle, frame: Frame
) -> None:
    moved, turned = move(position, pose.as_matrix(), shift, turn.as_matrix(), frame)
    expected = turn * pose if frame is Frame.BASE else pose * turn
    assert np.allclose(turned, expected.as_matrix(), atol=1e-9)
    back, turned_back = delta_between(position, pose.as_matrix(), moved, turned, frame)
    assert np.allclose(back, shift, atol=1e-9)
    assert np.allclose(turned_back, turn.as_matrix(), atol=1e-9)


def seven(control: str = ArmControl.EE_DELTA, /, **changes: object) -> Convention:
    fields: dict[str, object] = {
        "control": control,
        "rotation": Rotation.AXIS_ANGLE,
        "dims": 7,
        "gripper": Gripper(action_index=6, open_value=1, closed_value=0),
    }
    return Convention.model_validate({**fields, **changes})


def convert(
    source: Convention, target: Convention, chunk: object, state: object = (), rate_hz: float | None = None
) -> NDArray[np.float32]:
    return conversion(source, target, rate_hz=rate_hz)(
        PolicyActions(np.asarray(chunk, np.float32)), np.asarray(state, np.float32)
    )


OPENVLA = seven()
LIBERO = seven(gripper=Gripper(action_index=6, open_value=-1, closed_value=1), gripper_is_switch=True)
WIDOWX = seven(gripper=Gripper(action_index=6, open_value=1, closed_value=-1), gripper_is_switch=True)


@given(st.floats(0, 1, width=32).filter(lambda g: g != 0.5))
def test_openvla_drives_libero_as_its_own_evaluation_does(g: float) -> None:
    # experiments/robot/robot_utils.py: normalize_gripper_action(binarize=True), then invert_gripper_action.
    published = -np.sign(2 * g - 1)
    arm = [0.01, -0.02, 0.03, 0.1, -0.2, 0.3]
    [row] = convert(OPENVLA, LIBERO, [[*arm, g]])
    assert row[6] == published
    assert row[:6].tolist() == np.array(arm, np.float32).tolist()


@given(st.floats(0, 1, width=32), TURNS)
def test_openvla_drives_simplerenvs_widowx_as_its_own_evaluation_does(g: float, turn: Oracle) -> None:
    # simpler_env/policies/openvla: euler to rotation vector, gripper 2 * (g > 0.5) - 1.
    euler = from_matrix(turn.as_matrix(), Rotation.EULER_XYZ)
    [row] = convert(seven(rotation=Rotation.EULER_XYZ), WIDOWX, [[0.01, 0.02, 0.03, *euler, g]])
    assert row[6] == 2.0 * (g > 0.5) - 1.0
    assert gap(Oracle.from_rotvec(row[3:6]), Oracle.from_euler("xyz", np.float32(euler))) < 1e-5


@given(GRIPPERS, GRIPPERS, st.floats(0, 1))
def test_a_gripper_is_as_open_in_the_robots_polarity_as_in_the_policys(
    here: tuple[float, float], there: tuple[float, float], openness: float
) -> None:
    source = seven(gripper=Gripper(action_index=6, open_value=here[0], closed_value=here[1]))
    target = seven(gripper=Gripper(action_index=6, open_value=there[0], closed_value=there[1]))
    asked = here[1] + openness * (here[0] - here[1])
    [row] = convert(source, target, [[0, 0, 0, 0, 0, 0, asked]])
    assert row[6] == pytest.approx(there[1] + openness * (there[0] - there[1]), abs=1e-2)
    back = convert(target, source, [row])
    assert back[0, 6] == pytest.approx(asked, abs=1e-2)


def test_nan_reaches_the_gate_as_nan_whatever_is_converted() -> None:
    chunk = np.full((2, 7), np.nan)
    for target in (LIBERO, WIDOWX, seven(rotation=Rotation.EULER_XYZ, metres_per_unit=0.05)):
        assert np.isnan(convert(OPENVLA, target, chunk)).all()


def test_what_overflows_reaches_the_gate_as_infinite() -> None:
    tiny = seven(metres_per_unit=1e-30, radians_per_unit=1e-30)
    assert not np.isfinite(convert(OPENVLA, tiny, [[3e38] * 6 + [1]])[0, :6]).any()


@given(TURNS, FORMS, FORMS)
def test_a_delta_keeps_its_motion_in_other_units_and_notations(
    turn: Oracle, source: Rotation, target: Rotation
) -> None:
    one = seven(
        rotation=source,
        dims=4 + source.size,
        gripper=Gripper(action_index=3 + source.size, open_value=1, closed_value=0),
    )
    other = seven(
        rotation=target, dims=4 + target.size, metres_per_unit=0.05,
        gripper=Gripper(action_index=3 + target.size, open_value=1, closed_value=0),
    )  # fmt: skip
    [row] = convert(one, other, [[0.1, 0.2, -0.3, *written(turn, source), 0.25]])
    assert row[:3] == pytest.approx([2, 4, -6], abs=1e-4)
    assert gap(read(row[3:-1].astype(np.float64), target), turn) < 1e-5
    assert row[-1] == 0.25


@given(POINTS, TURNS, st.lists(st.tuples(POINTS, TURNS), min_size=1, max_size=4), st.sampled_from(list(Frame)))
def test_deltas_become_poses_and_poses_become_the_same_deltas(
    position: NDArray[np.float64], pose: Oracle, steps: list[tuple[NDArray[np.float64], Oracle]], frame: Frame
) -> None:
    start = tuple(range(6))
    deltas = seven(frame=frame, state_index=start)
    poses = seven(ArmControl.EE_POSE, state_index=start)
    state = [*position, *pose.as_rotvec()]
    chunk = np.array([[*shift, *turn.as_rotvec(), 1] for shift, turn in steps])
    reached = convert(deltas, poses, chunk, state)
    here, facing = np.float32(position).astype(float), Oracle.from_rotvec(np.float32(pose.as_rotvec()))
    for row, (shift, turn) in zip(reached, steps, strict=True):
        here = here + (shift if frame is Frame.BASE else facing.apply(shift))
        facing = turn * facing if frame is Frame.BASE else facing * turn
        assert row[:3] == pytest.approx(here, abs=1e-4)
        assert gap(Oracle.from_rotvec(row[3:6]), facing) < 1e-4
    again = convert(poses, deltas, reached, state)
    assert again[:, :3] == pytest.approx(chunk[:, :3], abs=1e-4)
    assert all(gap(Oracle.from_rotvec(a[3:6]), turn) < 1e-3 for a, (_, turn) in zip(again, steps, strict=True))


JOINTS: st.SearchStrategy[NDArray[np.float64]] = st.lists(
    st.tuples(*[st.floats(-2, 2)] * 3), min_size=1, max_size=5
).map(np.array)


@given(JOINTS, st.tuples(*[st.floats(-2, 2)] * 3), st.sampled_from([1.0, np.pi / 180]))
def test_joint_targets_steps_and_speeds_lead_through_the_same_angles(
    targets: NDArray[np.float64], start: tuple[float, ...], unit: float
) -> None:
    def joints(control: ArmControl, radians_per_unit: float = 1.0) -> Convention:
        return Convention(control=control, dims=3, state_index=(0, 1, 2), radians_per_unit=radians_per_unit)

    state = np.array(start)
    steps = np.diff(targets, axis=0, prepend=state[None])
    position, delta, speed = (
        joints(ArmControl.JOINT_POSITION), joints(ArmControl.JOINT_DELTA), joints(ArmControl.JOINT_VELOCITY)
    )  # fmt: skip
    assert convert(position, delta, targets, state) == pytest.approx(steps, abs=1e-5)
    assert convert(delta, position, steps, state) == pytest.approx(targets, abs=1e-5)
    assert convert(position, speed, targets, state, 15) == pytest.approx(steps * 15, abs=1e-4)
    assert convert(speed, position, steps * 15, state, 15) == pytest.approx(targets, abs=1e-5)
    assert convert(speed, delta, steps * 15, state, 15) == pytest.approx(steps, abs=1e-5)
    # A robot that counts in degrees tells its state in degrees, too.
    robot = joints(ArmControl.JOINT_POSITION, unit)
    assert convert(delta, robot, steps, state / unit) == pytest.approx(targets / unit, abs=1e-3)


SIX = Convention(control=ArmControl.JOINT_POSITION, dims=6)


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        (Convention(dims=7), LIBERO, "does not state its control"),
        (Convention(control=ArmControl.JOINT_POSITION, dims=7), LIBERO, "kinematics"),
        (seven(gripper=None, dims=6), LIBERO, "0 grippers"),
        (seven(rotation=None, dims=4, gripper=Gripper(action_index=3, open_value=1, closed_value=0)), LIBERO, "turns"),
        (seven(frame=Frame.TOOL), LIBERO, "state_index"),
        (seven(ArmControl.EE_POSE), LIBERO, "state_index"),
        (seven(dims=13), LIBERO, "2 arms"),
        (SIX, Convention(control=ArmControl.JOINT_POSITION, dims=7), "joints"),
        (Convention(control=ArmControl.JOINT_VELOCITY, dims=6), SIX, "rate"),
        (Convention(control=ArmControl.JOINT_DELTA, dims=6), SIX, "state"),
    ],
)  # fmt: skip
def test_what_does_not_lead_to_the_robot_is_refused_with_the_reason(
    source: Convention, target: Convention, why: str
) -> None:
    with pytest.raises(CannotConvert, match=why):
        conversion(source, target, rate_hz=None)


@given(st.lists(st.lists(st.floats(-1, 1, width=32), min_size=7, max_size=7), min_size=1, max_size=4))
def test_equal_conventions_pass_every_bit(chunk: list[list[float]]) -> None:
    assert conversion(OPENVLA, OPENVLA, rate_hz=None).changes_nothing
    assert np.array_equal(convert(OPENVLA, OPENVLA, chunk), np.array(chunk, np.float32))


@pytest.mark.parametrize(
    "fields",
    [
        {"gripper": Gripper(action_index=7, open_value=1, closed_value=0)},
        {"dims": 8},
        {"control": "joint_position"},
    ],
)
def test_a_convention_that_contradicts_itself_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"gripper|whole number|rotation"):
        Convention.model_validate({**OPENVLA.model_dump(), **fields})


def test_a_gripper_that_opens_where_it_closes_is_refused() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Gripper(action_index=0, open_value=1, closed_value=1)
    with pytest.raises(ValueError, match="rotation"):
        Space(rotation=Rotation.AXIS_ANGLE)
