"""Conventions of action vectors: what the numbers of a policy, or of a robot, mean.

A vector has the values of one or several arms in order, with the grippers where `Gripper` says. Nothing here is
assumed: two sides that state different conventions are converted (schemas/conversions.py) or do not go together.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Card(BaseModel):
    """Base of everything that a card file holds: immutable, and without fields that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArmControl(StrEnum):
    """What the values of an arm command."""

    JOINT_POSITION = "joint_position"  #: target angle or length of each joint
    JOINT_DELTA = "joint_delta"  #: added to the joints at every control step
    JOINT_VELOCITY = "joint_velocity"  #: speed of each joint until the next step
    EE_DELTA = "ee_delta"  #: translation and rotation of the tool within a control step
    EE_POSE = "ee_pose"  #: target position and orientation of the tool

    @property
    def is_joint(self) -> bool:
        return self in (ArmControl.JOINT_POSITION, ArmControl.JOINT_DELTA, ArmControl.JOINT_VELOCITY)


class Rotation(StrEnum):
    """How a rotation is written. Angles in units of `radians_per_unit`."""

    AXIS_ANGLE = "axis_angle"  #: 3 values: unit axis times angle (a rotation vector)
    EULER_XYZ = "euler_xyz"  #: 3 values: roll, pitch, yaw about the fixed x, y, z axes: R = Rz Ry Rx
    QUATERNION_XYZW = "quaternion_xyzw"  #: 4 values, the scalar last
    QUATERNION_WXYZ = "quaternion_wxyz"  #: 4 values, the scalar first

    @property
    def size(self) -> int:
        return 3 if self in (Rotation.AXIS_ANGLE, Rotation.EULER_XYZ) else 4


class Frame(StrEnum):
    """In which axes a tool moves."""

    BASE = "base"
    TOOL = "tool"


class Gripper(Card):
    """Which action dimensions are grippers, and which way they work."""

    action_index: int = Field(ge=0)
    #: Of robots with several grippers: the others, which work alike.
    further_indices: tuple[int, ...] = ()
    #: Commanded value that opens and that closes: the polarity, stated rather than assumed.
    open_value: float
    closed_value: float
    #: How far from one of the two values a command may lie. None: any value in between is allowed.
    tolerance: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _polarity_is_stated(self) -> Gripper:
        if self.open_value == self.closed_value:
            raise ValueError("gripper: open_value and closed_value must differ")
        if len(set(self.indices)) != len(self.indices) or min(self.indices) < 0:
            raise ValueError("gripper: an action dimension is named twice, or is negative")
        return self

    @property
    def indices(self) -> tuple[int, ...]:
        return (self.action_index, *self.further_indices)


class Space(Card):
    """The convention of an arm's values. Without `control` it is not stated, and nothing can be converted to it."""

    name: str = Field(default="native", pattern=r"^[a-z0-9_]{1,64}$")
    control: ArmControl | None = None
    #: Of tool control only; None: the tool is translated, never turned.
    rotation: Rotation | None = None
    #: Of tool control only.
    frame: Frame = Frame.BASE
    #: What 1.0 of a translation means in metres, and of an angle (or a joint's value) in radians; of a joint
    #: velocity in radians per second.
    metres_per_unit: float = Field(default=1.0, gt=0)
    radians_per_unit: float = Field(default=1.0, gt=0)
    #: State dimensions that hold what the arm's values start from: of joint control one a value, in the same unit;
    #: of tool control position and rotation, written as `rotation` is, in metres and radians. Empty: not known.
    state_index: tuple[int, ...] = ()

    @model_validator(mode="after")
    def _rotations_are_of_tools(self) -> Space:
        if self.rotation is not None and (self.control is None or self.control.is_joint):
            raise ValueError("space: a rotation is of control ee_delta or ee_pose only")
        return self


class Convention(Space):
    """A whole action vector: the arm's space, the number of dimensions, and the grippers among them."""

    dims: int = Field(gt=0, le=128)
    gripper: Gripper | None = None
    #: The gripper takes its two values only: what lies between is decided at the middle.
    gripper_is_switch: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Convention:
        if self.gripper is not None and max(self.gripper.indices) >= self.dims:
            raise ValueError(f"gripper: dimension {max(self.gripper.indices)} does not exist among {self.dims}")
        if self.control is not None and not self.control.is_joint and len(self.arm_indices) % self.tool_size:
            raise ValueError(f"{self.dims} values are not a whole number of arms of {self.tool_size} values")
        return self

    @property
    def tool_size(self) -> int:
        """Values of one arm under tool control: its translation and its rotation."""
        return 3 + (self.rotation.size if self.rotation is not None else 0)

    @property
    def gripper_indices(self) -> tuple[int, ...]:
        return self.gripper.indices if self.gripper is not None else ()

    @property
    def arm_indices(self) -> tuple[int, ...]:
        return tuple(i for i in range(self.dims) if i not in self.gripper_indices)
