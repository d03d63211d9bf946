"""What a batch costs and how fast requests come: the two figures that batching decides by. Pure."""

from __future__ import annotations

import math


class CostModel:
    """Seconds of a batch of n as a * n + b, fitted by least squares in which older batches count less and less.

    Both are at least 0. Where the batches remembered have one size only, the slope stays what it was.
    """

    def __init__(self, forgetting: float = 0.98) -> None:
        if not 0 < forgetting <= 1:
            raise ValueError("forgetting is in (0, 1]")
        self._forgetting = forgetting
        #: Weighted sums of 1, n, n * n, t and n * t.
        self._w = self._n = self._nn = self._t = self._nt = 0.0
        self._per_item_s = 0.0
        self._base_s = 0.0

    @property
    def per_item_s(self) -> float:
        """a, seconds for each further request in a batch."""
        return self._per_item_s

    @property
    def base_s(self) -> float:
        """b, seconds for a batch whatever its size."""
        return self._base_s

    def seconds(self, n: int) -> float:
        return self._per_item_s * n + self._base_s

    def observe(self, n: int, seconds: float) -> None:
        """Take one measured batch of n >= 1 that took `seconds`. Measurements that are no time are passed over."""
        if n < 1 or not math.isfinite(seconds) or seconds < 0:
            return
        keep = self._forgetting
        self._w = keep * self._w + 1
        self._n = keep * self._n + n
        self._nn = keep * self._nn + n * n
        self._t = keep * self._t + seconds
        self._nt = keep * self._nt + n * seconds
        spread = self._w * self._nn - self._n * self._n
        if spread > 1e-9 * self._w * self._nn:
            self._per_item_s = max((self._w * self._nt - self._n * self._t) / spread, 0.0)
        mean_n, mean_t = self._n / self._w, self._t / self._w
        self._base_s = mean_t - self._per_item_s * mean_n
        if self._base_s < 0:
            # The best line through the origin.
            self._per_item_s, self._base_s = self._nt / self._nn, 0.0


class ArrivalRate:
    """Arrivals per second, averaged with an exponential window of `window_s`."""

    def __init__(self, window_s: float = 1.0) -> None:
        self._window_s = window_s
        self._rate = 0.0
        self._last_s = -math.inf

    def arrived(self, now_s: float) -> None:
        self._rate = self.per_second(now_s) + 1 / self._window_s
        self._last_s = max(now_s, self._last_s)

    def per_second(self, now_s: float) -> float:
        return self._rate * math.exp(-max(now_s - self._last_s, 0.0) / self._window_s) if self._rate else 0.0
