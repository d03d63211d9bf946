"""From action tokens to actions in physical units."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpu_consumers.policies.openvla.checkpoint import ActionStatistics


class ActionDecoder:
    """The last tokens of Llama's vocabulary stand for bins of -1..1, in descending order.

    vocabulary: size without the padding that training added. bins: edges of the bins, one more than there are bins.
    """

    def __init__(self, statistics: ActionStatistics, *, vocabulary: int, bins: int) -> None:
        edges = np.linspace(-1, 1, bins)
        self._centres = (edges[:-1] + edges[1:]) / 2
        self._vocabulary = vocabulary
        self._mask = np.asarray(statistics.mask)
        self._low, self._high = np.asarray(statistics.q01), np.asarray(statistics.q99)

    @property
    def dim(self) -> int:
        return len(self._low)

    def __call__(self, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
        """(..., dim) tokens -> (..., dim) actions. A token that is no action counts as the nearest bin."""
        indices = np.clip(self._vocabulary - tokens - 1, 0, len(self._centres) - 1)
        normalised = self._centres[indices]
        scaled = 0.5 * (normalised + 1) * (self._high - self._low) + self._low
        return np.where(self._mask, scaled, normalised)
