"""Embodiment cards: what a robot type can do, and the limits that its actions are held to."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.action_space import Card, Convention, Gripper, Space

RobotType = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")]
#: Names that no card may have: a model's card allows robots that bring their own by the first, and nobody is the other.
CUSTOM = "custom"
RESERVED = (CUSTOM, "unknown")
#: More than any robot has; a card comes from customers too.
MAX_DIMS = 128


class ActionKind(StrEnum):
    """How one action dimension moves its joint or axis."""

    DELTA = "delta"  #: added to the current value at every control step
    ABSOLUTE = "absolute"  #: the target value itself
    BINARY = "binary"  #: a switch such as a gripper; rates do not apply
    VELOCITY = "velocity"  #: a speed that holds until the next step; `max_velocity` and `max_jerk` are of it


class ActionDim(Card):
    """One dimension of an action: its name, unit and limits."""

    name: str
    unit: str
    kind: ActionKind = ActionKind.DELTA
    #: Allowed range of the commanded value, in `unit`. None: no limit is known, or there is none.
    low: float | None = None
    high: float | None = None
    #: Highest speed, in unit per second. None: not limited beyond the range.
    max_velocity: float | None = Field(default=None, gt=0)
    #: Highest jerk, in unit per second cubed. None: not limited.
    max_jerk: float | None = Field(default=None, gt=0)
    #: Highest jump between the last action of the previous chunk and the first of this one, in `unit`.
    max_chunk_jump: float | None = Field(default=None, gt=0)
    #: Highest effort of the joint, in N m or N: recorded, never checked, as no action states one.
    max_effort: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _range_is_ordered(self) -> ActionDim:
        _check_range(f"action {self.name}", self.low, self.high)
        return self

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value; infinite where no limit is known."""
        return _range(self.low, self.high)

    @property
    def is_limited(self) -> bool:
        """Whether anything of it could be found out of its limits."""
        return (self.low is not None and self.high is not None) or self.max_velocity is not None


class StateDim(Card):
    """One dimension of the proprioceptive state."""

    name: str
    unit: str
    #: None: no limit is known, or there is none.
    low: float | None = None
    high: float | None = None

    @model_validator(mode="after")
    def _range_is_ordered(self) -> StateDim:
        _check_range(f"state {self.name}", self.low, self.high)
        return self


class Workspace(Card):
    """A box that the tool must stay in while the chunk is executed.

    `state_index[i]` is the state dimension that holds axis i before the chunk, `action_index[i]` the delta
    action that moves it. `low` and `high` are in the unit of the state dimension; `tolerance` is how far
    beyond the box the integrated position may go before the score reaches zero.
    """

    state_index: tuple[int, ...]
    action_index: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    tolerance: float = Field(gt=0)

    @model_validator(mode="after")
    def _axes_agree(self) -> Workspace:
        lengths = {len(self.state_index), len(self.action_index), len(self.low), len(self.high)}
        if len(lengths) != 1:
            raise ValueError("workspace: state_index, action_index, low and high must have one length")
        return self


class Commanded(Card):
    """One action space of a robot and its limits."""

    #: Where the limits come from (a file at a commit, a data sheet, the simulator's own source).
    source: str
    #: Unverified cards are served in `monitor` mode only.
    verified: bool
    #: Control steps a second. None: the robot does not say it, so the deployment has to.
    control_rate_hz: float | None = Field(default=None, gt=0, le=1000)
    actions: tuple[ActionDim, ...] = Field(min_length=1, max_length=MAX_DIMS)
    workspace: Workspace | None = None
    gripper: Gripper | None = None
    space: Space = Space()

    @model_validator(mode="after")
    def _indices_exist(self) -> Self:
        if self.workspace is not None and any(not 0 <= i < len(self.actions) for i in self.workspace.action_index):
            raise ValueError("workspace.action_index names an action dimension that does not exist")
        if self.gripper is not None and max(self.gripper.indices) >= len(self.actions):
            raise ValueError("gripper.action_index names an action dimension that does not exist")
        if self.verified and not self.source.strip():
            raise ValueError("source: a verified card says where its limits come from")
        if self.verified and (free := [dim.name for dim in self.actions if not dim.is_limited]):
            raise ValueError(f"verified: {free[0]} has neither a range nor a max_velocity, so nothing could be checked")
        return self

    @property
    def arm_indices(self) -> tuple[int, ...]:
        """Action dimensions that are no gripper."""
        grips = self.gripper.indices if self.gripper is not None else ()
        return tuple(i for i in range(len(self.actions)) if i not in grips)

    @property
    def convention(self) -> Convention:
        """What an action vector of this space means. Raises ValueError where the space does not fit its dimensions."""
        grips = self.gripper.indices if self.gripper is not None else ()
        return Convention(
            **self.space.model_dump(),
            dims=len(self.actions),
            gripper=self.gripper,
            gripper_is_switch=bool(grips) and all(self.actions[i].kind is ActionKind.BINARY for i in grips),
        )


class ActionSpace(Commanded):
    """Another way to command a robot, beside its card's own."""


class EmbodimentCard(Commanded):
    """A robot type: its state, its actions, and the limits that its actions are held to.

    `actions`, `gripper`, `workspace` and `space` are its first action space, `alternatives` the others; a model's
    card says which one it commands.
    """

    robot_type: RobotType
    title: str
    #: From base to tool, metres, and what it may carry, kilograms, as the source states them. None: it does not.
    reach_m: float | None = Field(default=None, gt=0)
    payload_kg: float | None = Field(default=None, gt=0)
    state: tuple[StateDim, ...] = Field(min_length=1, max_length=MAX_DIMS)
    alternatives: tuple[ActionSpace, ...] = Field(default=(), max_length=8)

    @model_validator(mode="after")
    def _parts_agree(self) -> EmbodimentCard:
        if self.robot_type in RESERVED:
            raise ValueError(f"robot_type: no robot may be called {' or '.join(RESERVED)}")
        spaces: tuple[Commanded, ...] = (self, *self.alternatives)
        if len({part.space.name for part in spaces}) != len(spaces):
            raise ValueError("alternatives: two action spaces share a name")
        for part in spaces:
            self._check_state(part.space.state_index, "space.state_index")
            if part.workspace is not None:
                self._check_state(part.workspace.state_index, "workspace.state_index")
            starts = part.space.state_index
            wanted = part.convention.tool_size
            if part.space.control is None or part.space.control.is_joint:
                wanted = len(part.arm_indices)
            if starts and len(starts) != wanted:
                raise ValueError(f"space.state_index names {len(starts)} state dimensions, not {wanted}")
        return self

    def _check_state(self, indices: tuple[int, ...], field: str) -> None:
        if any(not 0 <= i < len(self.state) for i in indices):
            raise ValueError(f"{field} names a state dimension that does not exist")

    @property
    def space_names(self) -> tuple[str, ...]:
        return (self.space.name, *(part.space.name for part in self.alternatives))

    def in_space(self, name: str, control_rate_hz: float | None = None) -> EmbodimentCard:
        """This robot commanded in one of its action spaces ("": its first). Raises KeyError for another name.

        control_rate_hz: what the steps are played at, where that is not the robot's own rate.
        """
        part = next((part for part in (self, *self.alternatives) if name in ("", part.space.name)), None)
        if part is None:
            raise KeyError(name)
        if part is self and control_rate_hz in (None, self.control_rate_hz):
            return self
        changes = {field: getattr(part, field) for field in Commanded.model_fields}
        rate = control_rate_hz or part.control_rate_hz or self.control_rate_hz
        return self.model_copy(update={**changes, "control_rate_hz": rate, "alternatives": ()})


def _range(low: float | None, high: float | None) -> tuple[float, float]:
    return -math.inf if low is None else low, math.inf if high is None else high


def _check_range(what: str, low: float | None, high: float | None) -> None:
    if not _range(low, high)[0] < _range(low, high)[1]:
        raise ValueError(f"{what}: low {low} must be below high {high}")
