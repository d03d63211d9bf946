"""Pictures for tests: good ones, and the ways in which a picture can be bad."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image


def scene(width: int = 224, height: int = 224, seed: int = 0) -> Image.Image:
    """Smooth random shapes: neither blank nor saturated, and different for each seed."""
    small = np.random.default_rng(seed).integers(20, 235, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(picture: Image.Image, image_format: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, image_format)
    return buffer.getvalue()


def jpeg(width: int = 224, height: int = 224, seed: int = 0) -> bytes:
    return encoded(scene(width, height, seed))


def flat(level: int, width: int = 224, height: int = 224) -> bytes:
    return encoded(Image.new("RGB", (width, height), (level, level, level)))
