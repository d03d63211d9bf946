"""Between physical units and what a policy was trained on: one affine map for each kind of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime.errors import Fatal

#: Divisor of a dimension that never moved in training, as lerobot has it.
_EPSILON = 1e-8


@dataclass(frozen=True, slots=True)
class Scaling:
    """`scaled = (x - offset) / scale`; both float32 (dim,)."""

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]

    def scaled(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        divisor = np.where(self.scale == 0, np.float32(_EPSILON), self.scale)
        return ((values - self.offset) / divisor).astype(np.float32)

    def physical(self, scaled: NDArray[np.float32]) -> NDArray[np.float32]:
        return (scaled * self.scale + self.offset).astype(np.float32)

    @property
    def dim(self) -> int:
        return len(self.offset)


def identity(dim: int) -> Scaling:
    return Scaling(np.zeros(dim, np.float32), np.ones(dim, np.float32))


def by_mean(mean: Sequence[float], std: Sequence[float]) -> Scaling:
    """To mean 0 and deviation 1. Raises ValueError for lengths that differ, and for negative or endless values."""
    return _checked(np.asarray(mean, np.float64), np.asarray(std, np.float64))


def by_range(low: Sequence[float], high: Sequence[float]) -> Scaling:
    """To -1..1 between two quantiles or limits. Raises ValueError as `by_mean` does."""
    lows, highs = np.asarray(low, np.float64), np.asarray(high, np.float64)
    if lows.shape != highs.shape:
        raise ValueError("two limits of different lengths")
    return _checked((lows + highs) / 2, (highs - lows) / 2)


def of_card(
    dim: int,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    q01: Sequence[float],
    q99: Sequence[float],
) -> Scaling | None:
    """What a model card says of one of state and actions; None where it says nothing. Raises Fatal."""
    if (mean or std) and (q01 or q99):
        raise Fatal("normalisation: give means and deviations, or quantiles, not both")
    if not (mean or std or q01 or q99):
        return None
    try:
        scaling = by_range(q01, q99) if q01 or q99 else by_mean(mean, std)
    except ValueError as error:
        raise Fatal(f"normalisation: {error}") from error
    if scaling.dim != dim or not (scaling.scale > 0).all():
        raise Fatal(f"normalisation: give {dim} means and {dim} positive deviations, or as many quantiles, or none")
    return scaling


def _checked(offset: NDArray[np.float64], scale: NDArray[np.float64]) -> Scaling:
    if offset.ndim != 1 or offset.shape != scale.shape:
        raise ValueError(f"statistics of shapes {offset.shape} and {scale.shape}")
    if not (np.isfinite(offset).all() and np.isfinite(scale).all() and (scale >= 0).all()):
        raise ValueError("statistics that are endless, or deviations below zero")
    return Scaling(offset.astype(np.float32), scale.astype(np.float32))
