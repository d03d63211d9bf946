"""Statistics of features as LeRobot keeps them, parts added up without reading twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Statistic -> nested list; `count` is a list of one number.
Stats = dict[str, Any]
_QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
#: Images of an episode that are looked at, and the longest side that they are looked at with.
_IMAGES, _SIDE_PX = 16, 224


def of_vectors(values: NDArray[Any]) -> Stats:
    """values: (n, dim) or, for one value a frame, (n,)."""
    data = values.astype(np.float64).reshape(len(values), -1)
    return _stats(data, (data.shape[1],), len(data))


def of_images(images: Sequence[NDArray[np.uint8]]) -> Stats:
    """By channel, 0..1, shape (3, 1, 1), of some images spread evenly. images: (height, width, 3) each."""
    chosen = [images[i] for i in sorted({round(x) for x in np.linspace(0, len(images) - 1, _IMAGES)})]
    step = max(1, max(chosen[0].shape) // _SIDE_PX)
    pixels = np.concatenate([image[::step, ::step].reshape(-1, 3) for image in chosen]).astype(np.float64) / 255
    return _stats(pixels, (3, 1, 1), len(chosen))


def combined(parts: Sequence[Mapping[str, Any]]) -> Stats:
    """Of all that the parts speak of (Chan et al. 1979 for the deviation); quantiles are averaged, as LeRobot does."""
    counts = np.array([part["count"][0] for part in parts], np.float64)
    means = np.array([part["mean"] for part in parts])
    variances = np.array([part["std"] for part in parts]) ** 2
    weights = (counts / counts.sum()).reshape((-1,) + (1,) * (means.ndim - 1))
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean) ** 2)).sum(0)
    return {
        "min": np.array([part["min"] for part in parts]).min(0).tolist(),
        "max": np.array([part["max"] for part in parts]).max(0).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        **{name: (weights * np.array([part[name] for part in parts])).sum(0).tolist() for name in _QUANTILES},
        "count": [int(counts.sum())],
    }


def _stats(data: NDArray[np.float64], shape: tuple[int, ...], count: int) -> Stats:
    figures = {"min": data.min(0), "max": data.max(0), "mean": data.mean(0), "std": data.std(0)}
    quantiles = np.quantile(data, list(_QUANTILES.values()), axis=0)
    figures |= dict(zip(_QUANTILES, quantiles, strict=True))
    return {**{name: value.reshape(shape).tolist() for name, value in figures.items()}, "count": [count]}
