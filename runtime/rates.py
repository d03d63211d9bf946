"""How often something happens, from its occurrences alone. Pure."""

from __future__ import annotations

import math


class EventRate:
    """Events per second, averaged with an exponential window of `window_s`. Times come from one monotonic clock."""

    def __init__(self, window_s: float = 1.0) -> None:
        self._window_s = window_s
        self._rate = 0.0
        self._last_s = -math.inf

    def happened(self, now_s: float) -> None:
        self._rate = self.per_second(now_s) + 1 / self._window_s
        self._last_s = max(now_s, self._last_s)

    def per_second(self, now_s: float) -> float:
        """The rate now; 0 only where nothing ever happened, or so long ago that it no longer counts."""
        return self._rate * math.exp(-max(now_s - self._last_s, 0.0) / self._window_s) if self._rate else 0.0
