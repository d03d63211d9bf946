"""Camera frames of a wanted size in bytes: the tabletop scene with sensor noise, as a JPEG of ordinary quality."""

from __future__ import annotations

import io
import uuid
from dataclasses import dataclass

import numpy as np
from PIL import Image

from examples.tabletop.world import TabletopWorld

QUALITY = 85
#: Cameras by the number of frames a request brings.
CAMERAS = ("base", "wrist", "side")
ROBOT_TYPE = "tabletop_arm"


@dataclass(frozen=True, slots=True)
class View:
    """What a robot sees and feels at one moment. state: (8,) as the tabletop arm's card says."""

    instruction: str
    jpegs: tuple[bytes, ...]
    state: tuple[float, ...]


def views(count: int, cameras: int, frame_bytes: int, width_px: int = 640, height_px: int = 480) -> list[View]:
    """`count` different views of `cameras` JPEGs, each within a tenth of `frame_bytes`."""
    made = []
    sigma = None
    for seed in range(count):
        world = TabletopWorld(seed)
        instruction = world.reset()
        scene = np.asarray(Image.fromarray(world.frame()).resize((width_px, height_px), Image.Resampling.BICUBIC))
        rng = np.random.default_rng(seed)
        if sigma is None:
            sigma = _noise_for(scene, frame_bytes, rng)
        jpegs = tuple(_jpeg(scene, sigma, rng) for _ in range(cameras))
        made.append(View(instruction, jpegs, tuple(float(value) for value in world.state())))
    return made


def _jpeg(scene: np.ndarray, sigma: float, rng: np.random.Generator) -> bytes:
    noisy = np.clip(scene + rng.normal(0.0, sigma, scene.shape[:2])[..., None], 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _noise_for(scene: np.ndarray, frame_bytes: int, rng: np.random.Generator) -> float:
    """The noise that makes a frame so large: more noise, more bytes. Raises ValueError where none does."""
    low, high = 0.0, 64.0
    for _ in range(12):
        middle = (low + high) / 2
        if len(_jpeg(scene, middle, rng)) < frame_bytes:
            low = middle
        else:
            high = middle
    size = len(_jpeg(scene, high, rng))
    if abs(size - frame_bytes) > frame_bytes / 10:
        height, width = scene.shape[:2]
        raise ValueError(f"a {width}x{height} frame has {size} bytes at best, not {frame_bytes}: choose other pixels")
    return high


def new_request_id() -> str:
    return str(uuid.uuid4())
