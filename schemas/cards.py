"""Model cards and embodiment cards: what a deployment serves and what a robot type can do.

A model card describes one deployment (one revision of a model behind one accepted topic and one consumer
group). An embodiment card describes one robot type. Both are YAML files; these classes are their schema.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from schemas.action_space import Card, Convention, Gripper, Space
from schemas.conversions import CannotConvert, Conversion, conversion
from schemas.embodiments import (
    CUSTOM,
    ActionDim,
    ActionKind,
    ActionSpace,
    EmbodimentCard,
    RobotType,
    StateDim,
    Workspace,
)

__all__ = [
    "CUSTOM",
    "ActionDim",
    "ActionKind",
    "ActionSpace",
    "CannotConvert",
    "CardSet",
    "Conversion",
    "DType",
    "EmbodimentCard",
    "Gripper",
    "ModelCard",
    "Normalisation",
    "Pairing",
    "RobotType",
    "Space",
    "StateDim",
    "Workspace",
    "valid_name",
]

#: Deployment, fleet and model names become parts of topic names, so they keep to this alphabet.
NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class DType(StrEnum):
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


class Normalisation(Card):
    """Statistics between physical units and what the policy was trained on.

    Either `policy = (x - mean) / std`, or by quantiles `policy = 2 (x - q01) / (q99 - q01) - 1`. Shapes: state
    (state_dim,), actions (action_dim,). Empty tuples: what the weights' folder holds, else the identity.
    """

    state_mean: tuple[float, ...] = ()
    state_std: tuple[float, ...] = ()
    action_mean: tuple[float, ...] = ()
    action_std: tuple[float, ...] = ()
    state_q01: tuple[float, ...] = ()
    state_q99: tuple[float, ...] = ()
    action_q01: tuple[float, ...] = ()
    action_q99: tuple[float, ...] = ()


class Pairing(Card):
    """What a deployment's outputs mean for one robot type.

    Without `outputs` they are in the robot's action space already, as those of a policy trained on that robot are.
    """

    outputs: Convention | None = None
    #: The robot's action space that is commanded. Empty: its first.
    space: str = ""
    #: What the chunk's steps are played at. None: the robot's own rate.
    control_rate_hz: float | None = Field(default=None, gt=0, le=1000)
    #: The statistics that the outputs are scaled by; where the policy takes such a key, it must be this one.
    unnorm_key: str = ""


class ObservationKeys(Card):
    """Where a foreign client's observation (openpi, vla-eval, OpenVLA) holds what this model wants.

    Keys are written with `/` between levels, as openpi does. What is not said is found by name (docs/protocols.md).
    """

    #: Camera of the card -> key of its image.
    cameras: dict[str, str] = Field(default_factory=dict)
    #: Keys whose numbers, one after the other, are the state.
    state: tuple[str, ...] = ()
    instruction: str = ""


class ModelCard(Card):
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
    #: Robot types; `custom` allows robots that bring their own card (what they must look like: `pairings.custom`).
    embodiments: tuple[RobotType, ...] = Field(min_length=1)
    #: For robot types among `embodiments` whose action space is not that of the outputs.
    pairings: dict[RobotType, Pairing] = Field(default_factory=dict)
    #: Cameras that a request must bring, in the order that the policy wants them.
    cameras: tuple[str, ...] = Field(min_length=1)
    #: Cameras that a request may bring as well, after those; the policy masks the absent ones.
    optional_cameras: tuple[str, ...] = ()
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
    observation_keys: ObservationKeys = ObservationKeys()
    #: Read by the policy alone, validated there.
    policy_config: dict[str, Any] = Field(default_factory=dict)
    #: Set by the loader: the card's own file, that `weights` is relative to.
    path: Path | None = Field(default=None, exclude=True)

    @model_validator(mode="after")
    def _batch_sizes_ascend(self) -> ModelCard:
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)) or self.batch_sizes[0] < 1:
            raise ValueError("batch_sizes must be positive, ascending and without repeats")
        return self

    @model_validator(mode="after")
    def _cameras_are_named_once(self) -> ModelCard:
        names = self.cameras + self.optional_cameras
        if len(set(names)) != len(names):
            raise ValueError("cameras and optional_cameras name a camera twice")
        return self

    @model_validator(mode="after")
    def _pairings_fit(self) -> ModelCard:
        for robot_type, pairing in self.pairings.items():
            if robot_type not in self.embodiments:
                raise ValueError(f"pairings.{robot_type}: this robot type is not among the embodiments")
            if pairing.outputs is not None and pairing.outputs.dims != self.action_dim:
                raise ValueError(f"pairings.{robot_type}.outputs.dims must be action_dim, {self.action_dim}")
            key = self.policy_config.get("unnorm_key")
            if pairing.unnorm_key and key is not None and key != pairing.unnorm_key:
                detail = f"the policy is configured with {key}: a deployment has one key, so serve another by its own"
                raise ValueError(f"pairings.{robot_type}.unnorm_key: {detail}")
        if CUSTOM in self.embodiments and self.pairing(CUSTOM).outputs is None:
            raise ValueError("pairings.custom.outputs: say what robots that bring their own card would get")
        return self

    def pairing(self, robot_type: str) -> Pairing:
        return self.pairings.get(robot_type, Pairing())

    def commanded(self, robot: EmbodimentCard) -> EmbodimentCard:
        """The robot in the action space, and at the rate, in which this deployment commands it: what the gate checks.

        Raises KeyError where the pairing names a space that the robot does not have.
        """
        if robot.robot_type not in self.embodiments:
            return robot.in_space("", robot.control_rate_hz or self.pairing(CUSTOM).control_rate_hz)
        pairing = self.pairing(robot.robot_type)
        return robot.in_space(pairing.space, pairing.control_rate_hz)

    def conversion(self, robot: EmbodimentCard) -> Conversion:
        """From this deployment's outputs to the robot's action space. Raises CannotConvert, or KeyError as above."""
        outputs = self.pairing(robot.robot_type).outputs
        target = self.commanded(robot)
        if outputs is None:
            if len(target.actions) != self.action_dim:
                raise CannotConvert(f"the policy gives {self.action_dim} values, the robot takes {len(target.actions)}")
            return Conversion()
        return conversion(outputs, target.convention, rate_hz=target.control_rate_hz)

    def misfit(self, robot: EmbodimentCard) -> str | None:
        """Why this deployment cannot drive a robot of the installation that it names; None if it can."""
        if len(robot.state) != self.state_dim:
            return f"the model takes {self.state_dim} state values, the robot has {len(robot.state)}"
        try:
            self.conversion(robot)
        except KeyError as error:
            return f"the robot has no action space {error}; it has: {', '.join(robot.space_names)}"
        except CannotConvert as error:
            return str(error)
        if self.commanded(robot).control_rate_hz is None:
            return "nobody says at which rate the steps are played: state control_rate_hz in the pairing"
        return None

    def custom_misfit(self, robot: EmbodimentCard) -> str | None:
        """Why a robot with a card of its customer's own cannot be driven; None if it can.

        Nothing is converted for it, so its convention is the model's.
        """
        if CUSTOM not in self.embodiments:
            return "the model serves no robots that bring their own card"
        outputs = self.pairing(CUSTOM).outputs
        wants = robot.in_space("")
        if len(robot.state) != self.state_dim:
            return f"the model takes {self.state_dim} state values, the robot has {len(robot.state)}"
        if len(wants.actions) != self.action_dim:
            return f"the model gives {self.action_dim} values, the robot takes {len(wants.actions)}"
        if outputs is None or (difference := _difference(outputs, wants.convention)):
            return f"the robot's action space is not the model's: {difference if outputs else 'it states none'}"
        if self.commanded(robot).control_rate_hz is None:
            return "the robot's card does not say its control_rate_hz, and neither does the model's"
        return None

    @property
    def weights_path(self) -> Path:
        """Absolute folder of the weights. Raises ValueError for a card without a file or without weights."""
        if self.path is None or not self.weights:
            raise ValueError(f"deployment {self.deployment} has no weights folder")
        return (self.path.parent / self.weights).resolve()


class CardSet(Card):
    """All cards of an installation, checked against each other. A robot type that no model names is listed only."""

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
                if robot_type == CUSTOM:
                    continue
                if embodiment is None:
                    raise ValueError(f"deployment {card.deployment} names robot type {robot_type}, which has no card")
                if (why := card.misfit(embodiment)) is not None:
                    raise ValueError(f"deployment {card.deployment} cannot drive robot type {robot_type}: {why}")
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


def _difference(outputs: Convention, robot: Convention) -> str:
    """The first field in which two conventions differ, in words; empty if they do not."""
    names = ("control", "rotation", "frame", "metres_per_unit", "radians_per_unit")
    for name in names:
        ours, theirs = getattr(outputs, name), getattr(robot, name)
        if ours != theirs:
            return f"{name} is {ours} of the model and {theirs} of the robot"
    ours, theirs = ((c.gripper.indices, c.gripper.open_value, c.gripper.closed_value) if c.gripper else None
                    for c in (outputs, robot))  # fmt: skip
    return "" if ours == theirs else "the grippers differ: which values, and which of them open and close"
