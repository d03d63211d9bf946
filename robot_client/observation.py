"""What a robot sees and is told, and its encoding as an InferenceRequest."""

from __future__ import annotations

import io
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from schemas.messages import ActionMatrix, Image, ImageEncoding, InferenceRequest, Options, SafetyMode

#: Quality of the JPEG that an array becomes where Pillow is installed, 1..95.
JPEG_QUALITY = 88

_SAFETY_MODES = {
    "": SafetyMode.SAFETY_MODE_UNSPECIFIED,
    "reject": SafetyMode.SAFETY_MODE_REJECT,
    "clamp": SafetyMode.SAFETY_MODE_CLAMP,
    "monitor": SafetyMode.SAFETY_MODE_MONITOR,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One look at the world.

    images: camera name -> JPEG or PNG bytes, or an array (height, width, 3) uint8 RGB, 64..2048 pixels a side.
    state: (state_dim,), the proprioceptive state in the units and order of the embodiment card.
    step: the episode's control step, counted by the robot; it grows from one observation to the next, so that
    two looks at a scene where nothing moved are still two observations.
    executed: (steps, action_dim), what the robot really did since its last request; None where it does not say.
    captured_at_ms: the robot's own clock, Unix epoch; recorded, never trusted. Default: now.
    """

    images: Mapping[str, bytes | NDArray[np.uint8]]
    state: ArrayLike
    instruction: str
    episode_id: str = ""
    step: int = 0
    executed: NDArray[np.float32] | None = None
    captured_at_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InferenceOptions:
    """latest_only: a newer observation of this robot supersedes this one while it waits.

    seed: of the policy's noise, 0..2**63-1; default: from the request id.
    safety_mode: "reject", "clamp", "monitor" or "" for the embodiment's default.
    """

    latest_only: bool = False
    seed: int | None = None
    safety_mode: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobotIdentity:
    """Who asks: robot_id of 1..64 characters [A-Za-z0-9._:-], robot_type of a card, model ("": the default)."""

    robot_id: str
    robot_type: str
    model: str = ""
    options: InferenceOptions = field(default_factory=InferenceOptions)


def encode_request(
    observation: Observation, identity: RobotIdentity, *, request_id: str, ttl_ms: int
) -> InferenceRequest:
    """The message that every transport carries; encoded once, so that a retry has the same content.

    Raises ValueError for images that are neither JPEG, PNG nor (height, width, 3) uint8, for a state or
    executed actions of the wrong rank, and for an unknown safety mode.
    """
    options = identity.options
    if options.safety_mode not in _SAFETY_MODES:
        raise ValueError(f"safety_mode {options.safety_mode!r}: use reject, clamp or monitor")
    state = np.asarray(observation.state, dtype=np.float32)
    if state.ndim != 1:
        raise ValueError(f"state must have shape (state_dim,), not {state.shape}")
    captured = observation.captured_at_ms
    return InferenceRequest(
        request_id=request_id,
        robot_id=identity.robot_id,
        robot_type=identity.robot_type,
        model=identity.model,
        instruction=observation.instruction,
        images=[_image(camera, content) for camera, content in observation.images.items()],
        state=state.tolist(),
        episode_id=observation.episode_id,
        step=observation.step,
        captured_at_ms=captured if captured is not None else time.time_ns() // 1_000_000,
        ttl_ms=ttl_ms,
        executed=_matrix(observation.executed),
        options=Options(
            latest_only=options.latest_only, seed=options.seed, safety_mode=_SAFETY_MODES[options.safety_mode]
        ),
    )


def _image(camera: str, content: bytes | NDArray[np.uint8]) -> Image:
    if isinstance(content, np.ndarray):
        if content.dtype != np.uint8 or content.ndim != 3 or content.shape[2] != 3:
            raise ValueError(
                f"image {camera}: an array must be (height, width, 3) uint8, not {content.shape} {content.dtype}"
            )
        height, width = content.shape[:2]
        jpeg = _jpeg(content)
        encoding = ImageEncoding.IMAGE_ENCODING_RGB8 if jpeg is None else ImageEncoding.IMAGE_ENCODING_JPEG
        data = content.tobytes() if jpeg is None else jpeg
        return Image(camera=camera, encoding=encoding, width=width, height=height, data=data)
    if content.startswith(b"\xff\xd8"):
        return Image(camera=camera, encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=content)
    if content.startswith(b"\x89PNG"):
        return Image(camera=camera, encoding=ImageEncoding.IMAGE_ENCODING_PNG, data=content)
    raise ValueError(f"image {camera}: the bytes are neither JPEG nor PNG; pass an array for raw pixels")


def _jpeg(pixels: NDArray[np.uint8]) -> bytes | None:
    """The array as JPEG; None without Pillow, which a robot need not have."""
    try:
        from PIL import Image as Pillow
    except ImportError:
        return None
    buffer = io.BytesIO()
    Pillow.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _matrix(executed: NDArray[np.float32] | None) -> ActionMatrix | None:
    if executed is None or len(executed) == 0:
        return None
    if executed.ndim != 2:
        raise ValueError(f"executed must have shape (steps, action_dim), not {executed.shape}")
    steps, dim = executed.shape
    return ActionMatrix(horizon=steps, dim=dim, values=executed.astype(np.float32).ravel().tolist())
