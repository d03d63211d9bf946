"""What a batch costs: a line fitted to what was measured, which follows a device that changes its pace. Pure."""

from __future__ import annotations

import math
from collections import deque

#: So many batches in a row, each at least _JUMP times as slow or as fast as foreseen, are a device of another pace.
_JUMP_BATCHES = 4
_JUMP = 1.5
#: Where scaling stops: no device is a thousand times faster or slower than it was a moment ago.
_LARGEST_JUMP = 1000.0


class CostModel:
    """Seconds of a batch of n as a * n + b, fitted by least squares in which older batches count less and less.

    Both are at least 0. Where the batches remembered have one size only, the slope stays what it was, unless the
    device has changed its pace: then both are scaled at once, rather than over a hundred batches.
    """

    def __init__(self, forgetting: float = 0.98) -> None:
        if not 0 < forgetting <= 1:
            raise ValueError("forgetting is in (0, 1]")
        self._forgetting = forgetting
        #: Weighted sums of 1, n, n * n, t and n * t.
        self._w = self._n = self._nn = self._t = self._nt = 0.0
        self._per_item_s = 0.0
        self._base_s = 0.0
        #: Sizes that were measured: only of these it can be said what is odd.
        self._known: set[int] = set()
        #: The last batches: time taken over time foreseen.
        self._ratios: deque[float] = deque(maxlen=_JUMP_BATCHES)
        #: Odd ones in a row, all too slow or all too quick, which the fit does not have yet.
        self._odd: list[tuple[int, float]] = []

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

    @property
    def least_s(self) -> float:
        """Time of a batch of one at the quickest pace of the last batches: the device will hardly undercut it."""
        return self.seconds(1) * min([1.0, *self._ratios])

    def observe(self, n: int, seconds: float) -> None:
        """Take one measured batch of n >= 1 that took `seconds`. Measurements that are no time are passed over."""
        if n < 1 or not math.isfinite(seconds) or seconds < 0:
            return
        foreseen_s = self.seconds(n)
        ratio = min(seconds / foreseen_s, _LARGEST_JUMP) if foreseen_s > 0 else 1.0
        self._ratios.append(ratio)
        if n in self._known and not 1 / _JUMP < ratio < _JUMP:
            if self._odd and (self._ratios[-2] > 1) != (ratio > 1):
                self._fit_odd()
            self._odd.append((n, seconds))
            if len(self._odd) < _JUMP_BATCHES:
                return
            # The mildest of them; the fit finds the rest.
            self._scale(min(self._ratios) if ratio > 1 else max(*self._ratios, 1 / _LARGEST_JUMP))
            self._fit_odd()
        else:
            self._fit_odd()
            self._fit(n, seconds)

    def _fit_odd(self) -> None:
        for n, seconds in self._odd:
            self._fit(n, seconds)
        self._odd.clear()

    def _scale(self, factor: float) -> None:
        """As if all that was measured had taken so many times as long."""
        self._t *= factor
        self._nt *= factor
        self._per_item_s *= factor
        self._ratios.clear()

    def _fit(self, n: int, seconds: float) -> None:
        self._known.add(n)
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
