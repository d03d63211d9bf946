"""How chunks that overlap in time become one action. Pure.

A blend takes the rows that several chunks hold for one moment, from the oldest chunk to the newest, and folds
them: `mean += share * (row - mean)`. The shares are within 0..1, so that what is executed lies between what the
gate has passed: within range and speed if each row is. A switch such as a gripper is never averaged: half closed
is neither open nor closed, so there the newest row counts. Nor is an angle that one chunk gives as 3.1 and the
other as -3.1 rad: absolute values that are further apart than half a turn are taken from the newest row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robot_client.axes import Axes

Row = NDArray[np.float32]


class Blend(Protocol):
    """What the next newer chunk weighs against the mean of all that are older."""

    def share(self, order: int, steps: float) -> float:
        """0..1. order: 1 for the second oldest chunk of this moment, and so on; steps: played since it was taken."""
        ...


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest chunk alone: every action is one that the gate has passed as it is."""

    def share(self, order: int, steps: float) -> float:
        return 1.0


@dataclass(frozen=True, slots=True)
class Weighted:
    """A fixed share for the newer of two. 0.7 is what LeRobot's asynchronous client does by default."""

    newer: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.newer <= 1:
            raise ValueError(f"newer must be within (0, 1], not {self.newer}")

    def share(self, order: int, steps: float) -> float:
        return self.newer


@dataclass(frozen=True, slots=True)
class CrossFade:
    """The newer chunk's share grows linearly from when it is taken, to all of it after `steps` control steps."""

    steps: int = 3

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, not {self.steps}")

    def share(self, order: int, steps: float) -> float:
        return min((steps + 1) / (self.steps + 1), 1.0)


@dataclass(frozen=True, slots=True)
class Ensemble:
    """Temporal ensembling: chunk i of a moment, 0 the oldest, weighs exp(-decay * i).

    Zhao et al. 2023, Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware (ACT), where decay is 0.01.
    A negative decay favours the newer chunks.
    """

    decay: float = 0.01

    def share(self, order: int, steps: float) -> float:
        return 1 / math.fsum(math.exp(self.decay * back) for back in range(order + 1))


def blended(rows: Sequence[tuple[Row, float]], blend: Blend, axes: Axes) -> Row:
    """One action (action_dim,) from the rows of one moment, oldest chunk first, each with the steps since it was taken.

    Raises ValueError for no row.
    """
    if not rows:
        raise ValueError("there is nothing to blend")
    whole = np.array([not move for move in axes.moves])
    switches = np.array(axes.switches)
    mean = rows[0][0].astype(np.float64)
    for order, (row, steps) in enumerate(rows[1:], start=1):
        newer = row.astype(np.float64)
        apart = whole & (np.abs(newer - mean) > math.pi)
        mean = np.where(switches | apart, newer, mean + blend.share(order, steps) * (newer - mean))
    return mean.astype(np.float32)
