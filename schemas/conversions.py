"""From a policy's action vectors to a robot's: gripper polarity, rotations, deltas, frames, units. Pure, numpy only.

A chunk is converted once: `Conversion` takes PolicyActions and gives RobotActions, two types that nothing else
makes, so that a second conversion does not pass the type checker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NewType

import numpy as np
from numpy.typing import NDArray

from schemas.action_space import ArmControl, Convention, Gripper, Rotation
from schemas.rotations import Array, delta_between, from_matrix, move, rotate, to_matrix

#: (horizon, policy's dims) float32, as the policy's `finish` gave it.
PolicyActions = NewType("PolicyActions", NDArray[np.float32])
#: (horizon, robot's dims) float32, in the action space that the robot is commanded in.
RobotActions = NewType("RobotActions", NDArray[np.float32])


class CannotConvert(ValueError):
    """The two conventions do not lead to each other; the message says why."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """One way from a policy to a robot; made by `conversion`, which refuses what cannot be converted.

    source, target: None where both are the same. rate_hz: control steps a second, for speeds.
    """

    source: Convention | None = None
    target: Convention | None = None
    rate_hz: float | None = None

    @property
    def changes_nothing(self) -> bool:
        return self.source is None

    def __call__(self, chunk: PolicyActions, state: NDArray[np.float32]) -> RobotActions:
        """Convert (horizon, policy's dims). state: (state_dim,) before the chunk. NaN stays NaN."""
        source, target = self.source, self.target
        if source is None or target is None:
            return RobotActions(chunk)
        with np.errstate(all="ignore"):  # what overflows becomes infinite, which no gate lets through
            return RobotActions(self._converted(np.asarray(chunk, np.float64), source, target, state))

    def _converted(
        self, values: Array, source: Convention, target: Convention, state: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        result = np.empty((len(values), target.dims))
        arm = values[:, list(source.arm_indices)]
        if source.control is not None and source.control.is_joint:
            result[:, list(target.arm_indices)] = _joints(arm, source, target, self.rate_hz, state)
        else:
            result[:, list(target.arm_indices)] = _tools(arm, source, target, state)
        for here, there in zip(source.gripper_indices, target.gripper_indices, strict=True):
            assert source.gripper is not None
            assert target.gripper is not None
            result[:, there] = grip(values[:, here], source.gripper, target.gripper, is_switch=target.gripper_is_switch)
        return result.astype(np.float32)


def conversion(source: Convention, target: Convention, *, rate_hz: float | None) -> Conversion:
    """The way from a policy's convention to a robot's. Raises CannotConvert."""
    if source.control is None or target.control is None:
        raise CannotConvert("one of the two action spaces does not state its control: say what its values command")
    if source.control.is_joint != target.control.is_joint:
        raise CannotConvert(f"{source.control} does not become {target.control} without the robot's kinematics")
    if len(source.gripper_indices) != len(target.gripper_indices):
        raise CannotConvert(
            f"the policy commands {len(source.gripper_indices)} grippers, the robot has {len(target.gripper_indices)}"
        )
    if source.control.is_joint:
        _check_joints(source, target, rate_hz)
    else:
        _check_tools(source, target)
    if _same(source, target):
        return Conversion()
    return Conversion(source, target, rate_hz)


def grip(values: Array, source: Gripper, target: Gripper, *, is_switch: bool) -> Array:
    """Gripper values (n,) of one polarity and range in another's; open stays open.

    is_switch: the target takes its two values only: open above the middle, closed at it and below, as the
    evaluation of OpenVLA on SimplerEnv decides (open where g > 0.5). NaN stays NaN, for the action gate to refuse.
    """
    openness = (values - source.closed_value) / (source.open_value - source.closed_value)
    if is_switch:
        openness = np.where(np.isnan(openness), np.nan, np.where(openness > 0.5, 1.0, 0.0))
    return target.closed_value + openness * (target.open_value - target.closed_value)


def _same(source: Convention, target: Convention) -> bool:
    names = ("control", "rotation", "frame", "dims", "metres_per_unit", "radians_per_unit")
    if any(getattr(source, name) != getattr(target, name) for name in names):
        return False
    if source.gripper is None or target.gripper is None:
        return True
    here, there = source.gripper, target.gripper
    polarity = (here.indices, here.open_value, here.closed_value) == (
        there.indices,
        there.open_value,
        there.closed_value,
    )
    return polarity and source.gripper_is_switch >= target.gripper_is_switch


def _check_joints(source: Convention, target: Convention, rate_hz: float | None) -> None:
    if len(source.arm_indices) != len(target.arm_indices):
        raise CannotConvert(
            f"the policy moves {len(source.arm_indices)} joints, the robot has {len(target.arm_indices)}"
        )
    if source.control is target.control:
        return
    if ArmControl.JOINT_VELOCITY in (source.control, target.control) and rate_hz is None:
        raise CannotConvert("speeds become steps at a control rate only: state control_rate_hz")
    if ArmControl.JOINT_POSITION in (source.control, target.control) and len(target.state_index) != len(
        target.arm_indices
    ):
        raise CannotConvert("positions start from the joints' state: state_index of the robot's space does not say it")


def _check_tools(source: Convention, target: Convention) -> None:
    arms, wanted = (len(side.arm_indices) // side.tool_size for side in (source, target))
    if arms != wanted:
        raise CannotConvert(f"the policy moves {arms} arms, the robot has {wanted}")
    if (source.rotation is None) != (target.rotation is None):
        raise CannotConvert("one side turns the tool and the other does not")
    quaternions = (Rotation.QUATERNION_XYZW, Rotation.QUATERNION_WXYZ)
    for side in (source, target):
        if side.rotation in quaternions and side.radians_per_unit != 1.0:
            raise CannotConvert("a quaternion has no unit: radians_per_unit must be 1")
    moved = source.control is not target.control or (
        source.control is ArmControl.EE_DELTA and source.frame is not target.frame
    )
    if moved and (arms != 1 or target.rotation is None or len(target.state_index) != target.tool_size):
        raise CannotConvert(
            f"{source.control} in the {source.frame} frame becomes {target.control} in the {target.frame} frame "
            "by way of the tool's pose, and state_index of the robot's space does not say it for one arm"
        )


def _joints(
    arm: Array, source: Convention, target: Convention, rate_hz: float | None, state: NDArray[np.float32]
) -> Array:
    scale = source.radians_per_unit / target.radians_per_unit
    if source.control is target.control:
        return arm * scale
    radians = arm * source.radians_per_unit
    if source.control is ArmControl.JOINT_VELOCITY:
        radians = radians / (rate_hz or np.nan)
    if source.control is ArmControl.JOINT_POSITION or target.control is ArmControl.JOINT_POSITION:
        start = np.asarray(state, np.float64)[list(target.state_index)]
        # The state is in the unit of the robot's joints; of a space of speeds that is radians.
        start = start * (1.0 if target.control is ArmControl.JOINT_VELOCITY else target.radians_per_unit)
        if target.control is ArmControl.JOINT_POSITION:
            radians = start + np.cumsum(radians, axis=0)
        else:
            radians = np.diff(radians, axis=0, prepend=start[None])
    if target.control is ArmControl.JOINT_VELOCITY:
        radians = radians * (rate_hz or np.nan)
    return radians / target.radians_per_unit


def _tools(arm: Array, source: Convention, target: Convention, state: NDArray[np.float32]) -> Array:
    blocks = arm.reshape(len(arm), -1, source.tool_size)
    shift = blocks[..., :3] * source.metres_per_unit
    if source.rotation is None or target.rotation is None:
        return (shift / target.metres_per_unit).reshape(len(arm), -1)
    turn = blocks[..., 3:]
    if source.control is target.control and (source.control is ArmControl.EE_POSE or source.frame is target.frame):
        same_form = source.rotation is target.rotation
        turned = (
            turn * (source.radians_per_unit / target.radians_per_unit)
            if same_form
            else rotate(turn * source.radians_per_unit, source.rotation, target.rotation) / target.radians_per_unit
        )
    else:
        shift, matrices = _by_pose(shift[:, 0], to_matrix(turn[:, 0] * source.radians_per_unit, source.rotation),
                                   source, target, state)  # fmt: skip
        turned = from_matrix(matrices, target.rotation)[:, None] / target.radians_per_unit
        shift = shift[:, None]
    return np.concatenate((shift / target.metres_per_unit, turned), axis=-1).reshape(len(arm), -1)


def _by_pose(
    shifts: Array, turns: Array, source: Convention, target: Convention, state: NDArray[np.float32]
) -> tuple[Array, Array]:
    """One arm's steps, by way of the poses that they lead through. shifts: (horizon, 3), turns: (horizon, 3, 3)."""
    assert target.rotation is not None
    start = np.asarray(state, np.float64)[list(target.state_index)]
    position, matrix = start[:3], to_matrix(start[3:], target.rotation)
    new_shifts, new_turns = np.empty_like(shifts), np.empty_like(turns)
    for step, (shift, turn) in enumerate(zip(shifts, turns, strict=True)):
        if source.control is ArmControl.EE_POSE:
            after = shift, turn
        else:
            after = move(position, matrix, shift, turn, source.frame)
        if target.control is ArmControl.EE_POSE:
            new_shifts[step], new_turns[step] = after
        else:
            new_shifts[step], new_turns[step] = delta_between(position, matrix, *after, target.frame)
        position, matrix = after
    return new_shifts, new_turns
