"""A keyframe's images as a dataset keeps them: files of image formats as they were sent, raw pixels as PNG. Pure."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sinks.export.reading import StoredImage


@dataclass(frozen=True, slots=True)
class Picture:
    """`file` is an image file; size is (height, width) in pixels."""

    file: bytes
    size: tuple[int, int]

    def pixels(self) -> NDArray[np.uint8]:
        """(height, width, 3)."""
        with Image.open(io.BytesIO(self.file)) as opened:
            return np.asarray(opened.convert("RGB"))


def picture(stored: StoredImage) -> Picture:
    """Raises ValueError where it cannot be read; what the gate let through can."""
    if stored.encoding == "rgb8":
        pixels = np.frombuffer(stored.data, np.uint8).reshape(stored.height, stored.width, 3)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return Picture(file.getvalue(), (stored.height, stored.width))
    try:
        with Image.open(io.BytesIO(stored.data)) as opened:
            return Picture(stored.data, (opened.height, opened.width))
    except OSError as error:
        raise ValueError(f"an image of the lake cannot be read: {error}") from error
