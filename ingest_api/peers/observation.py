"""What a peer's observation says: which array is which camera, which numbers are the state, what is to be done. Pure.

A model card says it under `observation_keys`; where it does not, names decide (docs/protocols.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingest_api.peers.arrays import Array, PictureFile, unreadable
from ingest_api.problems import Problem, fault
from schemas.cards import ModelCard
from schemas.codes import Code

_INSTRUCTIONS = ("prompt", "task_description", "instruction", "language_instruction", "task")
_STATES = ("state", "states", "proprio")
#: DROID's state lies in parts.
_STATE_PARTS = ("joint_position", "gripper_position")
_WRIST = ("wrist", "hand", "gripper")
_MOST_KEYS = 256
_DEEPEST = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """pictures: by camera, uint8 (height, width, 3) RGB or the file that came. state: in the card's order."""

    pictures: dict[str, Array | PictureFile]
    state: list[float]
    instruction: str


def observe(content: object, card: ModelCard) -> Seen:
    """What an observation map says to a model. Raises Problem 400 or 422, naming what is missing."""
    if not isinstance(content, Mapping):
        raise unreadable("an observation is a map")
    flat: dict[str, Any] = {}
    _flatten(content, "", flat, 0)
    keys = card.observation_keys
    return Seen(
        pictures=_pictures(flat, card),
        state=_state(flat, keys.state),
        instruction=_instruction(flat, keys.instruction),
    )


def _flatten(content: Mapping[Any, Any], prefix: str, flat: dict[str, Any], depth: int) -> None:
    for name, value in content.items():
        path = f"{prefix}{name.decode(errors='replace') if isinstance(name, bytes) else name}"
        if isinstance(value, Mapping) and depth < _DEEPEST:
            _flatten(value, f"{path}/", flat, depth + 1)
        elif len(flat) < _MOST_KEYS:
            flat[path] = value


def _last(key: str) -> str:
    return key.replace(".", "/").rsplit("/", 1)[-1]


def _pictures(flat: dict[str, Any], card: ModelCard) -> dict[str, Array | PictureFile]:
    images: dict[str, Array | PictureFile] = {}
    for name, value in flat.items():
        picture = value if isinstance(value, PictureFile) else _picture(value)
        if picture is not None:
            images[name] = picture
    left = list(images)
    found: dict[str, Array | PictureFile] = {}
    for camera in card.cameras:
        declared = card.observation_keys.cameras.get(camera)
        key = _key_of(camera, left) if declared is None else declared if declared in images else None
        if key is None:
            named = ", ".join(images)[:200] or "no image"
            detail = f"no image for the camera {camera} in {named}: name its key in the card's observation_keys"
            raise Problem(Code.INVALID_IMAGE, detail, violations=[fault(f"image.{camera}", "missing", detail)])
        if key in left:
            left.remove(key)
        found[camera] = images[key]
    return found


def _key_of(camera: str, keys: list[str]) -> str | None:
    """The key with the camera's own name; else the first that is at the wrist just as the camera is, or is not."""
    exact = [key for key in keys if _last(key) == camera]
    alike = [key for key in keys if _at_wrist(_last(key)) == _at_wrist(camera)]
    return next(iter([*exact, *alike]), None)


def _at_wrist(name: str) -> bool:
    return any(part in name.lower() for part in _WRIST)


def _picture(value: object) -> Array | None:
    """uint8 (height, width, 3), or None for what is no image. As openpi: floats are 0..1, channels may come first."""
    if not isinstance(value, np.ndarray):
        return None
    image = value
    while image.ndim > 3 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or min(image.shape) < 1:
        return None
    if image.shape[2] != 3 and image.shape[0] == 3:
        image = np.moveaxis(image, 0, 2)
    if image.shape[2] != 3:
        return None
    if image.dtype.kind == "f":
        return np.asarray(np.clip(np.nan_to_num(image), 0, 1) * 255, np.uint8)
    return image if image.dtype == np.uint8 else None


def _state(flat: dict[str, Any], declared: tuple[str, ...]) -> list[float]:
    keys = declared or _state_keys(flat)
    numbers: list[float] = []
    for key in keys:
        if key not in flat:
            detail = f"the card's observation_keys name {key} as state, which is not there"
            raise Problem(Code.INVALID_STATE, detail, violations=[fault("state", "missing", detail)])
        try:
            numbers.extend(np.asarray(flat[key], np.float64).reshape(-1).tolist())
        except (ValueError, TypeError) as error:
            detail = f"{key} does not hold numbers"
            raise Problem(Code.INVALID_STATE, detail, violations=[fault("state", "not_numbers", detail)]) from error
    return numbers


def _state_keys(flat: dict[str, Any]) -> tuple[str, ...]:
    """The whole state under one name, or DROID's parts; none: the gate says what the model wants."""
    for name in _STATES:
        whole = [key for key in flat if _last(key) == name]
        if whole:
            return (whole[0],)
    return tuple(key for part in _STATE_PARTS for key in flat if _last(key) == part)


def _instruction(flat: dict[str, Any], declared: str) -> str:
    names = (declared,) if declared else _INSTRUCTIONS
    for name in names:
        for key, value in flat.items():
            if key == name or (not declared and _last(key) == name):
                if isinstance(value, bytes):
                    return value.decode(errors="replace")
                if isinstance(value, str):
                    return value
    detail = f"no instruction: send it as {' or '.join(names)}"
    raise Problem(Code.INVALID_INSTRUCTION, detail, violations=[fault("instruction", "missing", detail)])
