"""How long the answers of late took."""

from __future__ import annotations

import math
from collections import deque


class LatencyWindow:
    """The last `size` latencies, in seconds. What never came counts with the time after which it was given up."""

    def __init__(self, size: int = 64) -> None:
        self._taken_s: deque[float] = deque(maxlen=size)

    def add(self, seconds: float) -> None:
        self._taken_s.append(seconds)

    def percentile_s(self, percent: float) -> float | None:
        """The smallest latency that `percent` (0..100] of them do not exceed (nearest rank); None: none yet."""
        if not self._taken_s:
            return None
        ordered = sorted(self._taken_s)
        return ordered[max(math.ceil(len(ordered) * percent / 100), 1) - 1]
