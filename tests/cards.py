"""A small, valid installation for tests: one robot type and one deployment, or two that share a model."""

from __future__ import annotations

from pathlib import Path

import yaml

from schemas.cards import ActionDim, ActionKind, CardSet, EmbodimentCard, Gripper, ModelCard, StateDim, Workspace


def embodiment(**changes: object) -> EmbodimentCard:
    """A planar arm: two delta actions and a gripper, x and y as state."""
    fields: dict[str, object] = {
        "robot_type": "test_arm",
        "title": "Planar test arm",
        "source": "made for tests",
        "verified": True,
        "control_rate_hz": 10,
        "state": (
            StateDim(name="x", unit="m", low=0, high=1),
            StateDim(name="y", unit="m", low=0, high=1),
        ),
        "actions": (
            ActionDim(name="dx", unit="m", low=-0.1, high=0.1, max_velocity=0.8, max_jerk=200, max_chunk_jump=0.15),
            ActionDim(name="dy", unit="m", low=-0.1, high=0.1, max_velocity=0.8, max_jerk=200, max_chunk_jump=0.15),
            ActionDim(name="gripper", unit="1", kind=ActionKind.BINARY, low=0, high=1),
        ),
        "workspace": Workspace(state_index=(0, 1), action_index=(0, 1), low=(0, 0), high=(1, 1), tolerance=0.1),
        "gripper": Gripper(action_index=2, open_value=0, closed_value=1, tolerance=0.25),
    }
    return EmbodimentCard.model_validate({**fields, **changes})


def model(**changes: object) -> ModelCard:
    fields: dict[str, object] = {
        "model": "test-model",
        "deployment": "test-model-a",
        "title": "Deterministic",
        "policy": "deterministic",
        "embodiments": ("test_arm",),
        "cameras": ("base",),
        "state_dim": 2,
        "action_dim": 3,
        "horizon": 4,
        "default": True,
    }
    return ModelCard.model_validate({**fields, **changes})


def cards(*models: ModelCard, embodiments: tuple[EmbodimentCard, ...] | None = None) -> CardSet:
    return CardSet(models=models or (model(),), embodiments=embodiments or (embodiment(),))


def write_cards(folder: Path, served: ModelCard | None = None) -> Path:
    """The installation as the files that a process reads, `served` in the place of its deployment."""
    for kind, name, card in (("embodiments", "test_arm", embodiment()), ("models", "test_model", served or model())):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        content = card.model_dump(mode="json", exclude_none=True)
        (folder / kind / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return folder
