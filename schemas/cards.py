"""Model cards and embodiment cards: what a deployment serves and what a robot type can do.

A model card describes one deployment (one revision of a model behind one accepted topic and one consumer
group). An embodiment card describes one robot type. Both are YAML files; these classes are their schema.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Deployment, fleet and model names become parts of topic names, so they keep to this alphabet.
NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
RobotType = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]{0,62}$")]


class _Card(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ActionKind(StrEnum):
    """How one action dimension moves its joint or axis."""

    DELTA = "delta"  #: added to the current value at every control step
    ABSOLUTE = "absolute"  #: the target value itself
    BINARY = "binary"  #: a switch such as a gripper; rates do not apply


class ActionDim(_Card):
    """One dimension of an action: its name, unit and limits."""

    name: str
    unit: str
    kind: ActionKind = ActionKind.DELTA
    #: Allowed range of the commanded value, in `unit`.
    low: float
    high: float
    #: Highest speed, in unit per second. None: not limited beyond the range.
    max_velocity: float | None = Field(default=None, gt=0)
    #: Highest jerk, in unit per second cubed. None: not limited.
    max_jerk: float | None = Field(default=None, gt=0)
    #: Highest jump between the last action of the previous chunk and the first of this one, in `unit`.
    max_chunk_jump: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _range_is_ordered(self) -> ActionDim:
        if not self.low < self.high:
            raise ValueError(f"action {self.name}: low {self.low} must be below high {self.high}")
        return self


class StateDim(_Card):
    """One dimension of the proprioceptive state."""

    name: str
    unit: str
    low: float
    high: float


class Workspace(_Card):
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


class Gripper(_Card):
    """Which action dimension is the gripper, and which way it works."""

    action_index: int = Field(ge=0)
    #: Commanded value that opens and that closes: the polarity, stated rather than assumed.
    open_value: float
    closed_value: float
    #: How far from one of the two values a command may lie. None: any value in between is allowed.
    tolerance: float | None = Field(default=None, gt=0)


class EmbodimentCard(_Card):
    """A robot type: its state, its actions, and the limits that its actions are held to."""

    robot_type: RobotType
    title: str
    #: Where the limits come from (a file at a commit, a data sheet, the simulator's own source).
    source: str
    #: Unverified cards are served in `monitor` mode only.
    verified: bool
    control_rate_hz: float = Field(gt=0, le=1000)
    state: tuple[StateDim, ...] = Field(min_length=1)
    actions: tuple[ActionDim, ...] = Field(min_length=1)
    workspace: Workspace | None = None
    gripper: Gripper | None = None

    @model_validator(mode="after")
    def _indices_exist(self) -> EmbodimentCard:
        if self.workspace is not None:
            if any(not 0 <= i < len(self.state) for i in self.workspace.state_index):
                raise ValueError("workspace.state_index names a state dimension that does not exist")
            if any(not 0 <= i < len(self.actions) for i in self.workspace.action_index):
                raise ValueError("workspace.action_index names an action dimension that does not exist")
        if self.gripper is not None and self.gripper.action_index >= len(self.actions):
            raise ValueError("gripper.action_index names an action dimension that does not exist")
        return self


class DType(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Normalisation(_Card):
    """Statistics between physical units and what the policy was trained on: `policy = (x - mean) / std`.

    Shapes: state (state_dim,), actions (action_dim,). Empty tuples mean the identity.
    """

    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()


class ModelCard(_Card):
    """One deployment: which policy with which weights serves which robots under which model name."""

    #: The name that requests use (`model`). Several cards may share it; `traffic` splits their robots.
    model: Name
    #: Unique; names the accepted topic, the consumer group and the metrics of this deployment.
    deployment: Name
    title: str
    #: Key of the policy registry in gpu_consumers/policies.
    policy: str
    #: Folder of the weights, relative to the card's own file. Empty for policies without weights.
    weights: str = ""
    embodiments: tuple[RobotType, ...] = Field(min_length=1)
    #: Cameras that a request must bring, in the order that the policy wants them.
    cameras: tuple[str, ...] = Field(min_length=1)
    state_dim: int = Field(gt=0)
    action_dim: int = Field(gt=0)
    #: Steps in an action chunk.
    horizon: int = Field(gt=0, le=256)
    dtype: DType = DType.FLOAT32
    #: Batch sizes that the worker runs; a batch is padded up to the next one where the policy compiles shapes.
    batch_sizes: tuple[int, ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    #: Relative share of the model's robots, by a stable hash of robot_id.
    traffic: float = Field(default=1.0, ge=0)
    #: The model that a request without `model` gets.
    default: bool = False
    normalisation: Normalisation = Normalisation()
    #: Read by the policy alone, validated there.
    policy_config: dict[str, Any] = Field(default_factory=dict)
    #: Set by the loader: the card's own file, that `weights` is relative to.
    path: Path | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _batch_sizes_ascend(self) -> ModelCard:
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)) or self.batch_sizes[0] < 1:
            raise ValueError("batch_sizes must be positive, ascending and without repeats")
        return self

    @property
    def weights_path(self) -> Path:
        """Absolute folder of the weights. Raises ValueError for a card without a file or without weights."""
        if self.path is None or not self.weights:
            raise ValueError(f"deployment {self.deployment} has no weights folder")
        return (self.path.parent / self.weights).resolve()


class CardSet(_Card):
    """All cards of an installation, checked against each other."""

    models: tuple[ModelCard, ...]
    embodiments: tuple[EmbodimentCard, ...]

    @model_validator(mode="after")
    def _cards_agree(self) -> CardSet:
        by_type = {card.robot_type: card for card in self.embodiments}
        if len(by_type) != len(self.embodiments):
            raise ValueError("two embodiment cards share a robot_type")
        if len({card.deployment for card in self.models}) != len(self.models):
            raise ValueError("two model cards share a deployment name")
        if len({card.model for card in self.models if card.default}) > 1:
            raise ValueError("more than one model is marked default")
        for card in self.models:
            for robot_type in card.embodiments:
                embodiment = by_type.get(robot_type)
                if embodiment is None:
                    raise ValueError(f"deployment {card.deployment} names robot type {robot_type}, which has no card")
                if len(embodiment.actions) != card.action_dim or len(embodiment.state) != card.state_dim:
                    raise ValueError(f"deployment {card.deployment} and robot type {robot_type} differ in dimensions")
        return self

    def embodiment(self, robot_type: str) -> EmbodimentCard | None:
        return next((card for card in self.embodiments if card.robot_type == robot_type), None)

    def deployments(self, model: str) -> tuple[ModelCard, ...]:
        """Cards that serve a model name, in file order. Empty for an unknown model."""
        return tuple(card for card in self.models if card.model == model)

    def deployment(self, name: str) -> ModelCard | None:
        return next((card for card in self.models if card.deployment == name), None)

    @property
    def default_model(self) -> str | None:
        """The default model's name; the only model's name where none is marked."""
        marked = [card.model for card in self.models if card.default]
        names = {card.model for card in self.models}
        return marked[0] if marked else (names.pop() if len(names) == 1 else None)


def valid_name(name: str) -> bool:
    """Whether a name may become part of a topic name."""
    return re.fullmatch(NAME_PATTERN, name) is not None
