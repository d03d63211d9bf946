"""Camera pictures as OpenVLA's vision towers want them: resized by PIL as in training, scaled for each tower."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as torchvision

from gpu_consumers.policies.openvla.checkpoint import Preprocessing
from runtime.errors import Fatal

_STRATEGIES = ("resize-naive", "resize-crop", "letterbox")


class PictureTransform:
    """uint8 (height, width, 3) RGB -> float32 (3 x towers, side, side), the towers' channels after one another."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        """Raises Fatal for a resize strategy or an interpolation that does not exist."""
        self._how = preprocessing
        if preprocessing.image_resize_strategy not in _STRATEGIES:
            raise Fatal(f"preprocessor_config.json: image_resize_strategy is one of {', '.join(_STRATEGIES)}")
        try:
            self._modes = [InterpolationMode(name) for name in preprocessing.interpolations]
        except ValueError as error:
            raise Fatal(f"preprocessor_config.json: {error}") from error

    def __call__(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        how = self._how
        picture = Image.fromarray(pixels)
        if how.image_resize_strategy == "letterbox":
            picture = _letterboxed(picture, how.means[-1])
        towers = []
        for (_, height, width), mode, mean, std in zip(how.input_sizes, self._modes, how.means, how.stds, strict=True):
            # One length: the shorter side, proportions kept. Two: both sides, proportions lost.
            size: Any = (height, width) if how.image_resize_strategy == "resize-naive" else [height]
            small = torchvision.resize(picture, size, interpolation=mode, antialias=True)
            square = torchvision.center_crop(small, [height, width])
            towers.append(torchvision.normalize(torchvision.to_tensor(square), list(mean), list(std)))
        return torch.vstack(towers)


def _letterboxed(picture: Image.Image, mean: tuple[float, float, float]) -> Image.Image:
    """A border of the mean colour on both sides of the shorter edge."""
    longest = max(picture.size)
    beside, above = int((longest - picture.width) / 2), int((longest - picture.height) / 2)
    fill = [int(value * 255) for value in mean]
    bordered: Image.Image = torchvision.pad(picture, [beside, above, beside, above], fill=fill, padding_mode="constant")
    return bordered
