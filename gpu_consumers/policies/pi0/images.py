"""Camera pictures as PI0's vision tower wants them: (3, side, side) float32 in -1..1."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional


def stretched(pixels: NDArray[np.uint8], side_px: int) -> torch.Tensor:
    """uint8 (height, width, 3), squeezed to a square by area."""
    small = Image.fromarray(pixels).resize((side_px, side_px), Image.Resampling.BOX)
    # -1..1: images in 0..1 raise nothing in the model and give other actions.
    scaled = np.asarray(small, np.float32) / 127.5 - 1.0
    return torch.from_numpy(scaled).permute(2, 0, 1)


def padded(pixels: NDArray[np.uint8], side_px: int) -> torch.Tensor:
    """uint8 (height, width, 3), resized with its proportions kept and black beside it, as openpi and lerobot do.

    Bilinear without antialiasing: that is what their models were trained on.
    """
    image = torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None] / 255.0
    height, width = image.shape[2:]
    if (height, width) != (side_px, side_px):
        ratio = max(width / side_px, height / side_px)
        size = (int(height / ratio), int(width / ratio))
        image = functional.interpolate(image, size=size, mode="bilinear", align_corners=False).clamp(0.0, 1.0)
        top, left = (side_px - size[0]) // 2, (side_px - size[1]) // 2
        image = functional.pad(image, (left, side_px - size[1] - left, top, side_px - size[0] - top))
    return image[0] * 2.0 - 1.0
