"""Geometry of the pages' plots, which templates write as SVG. Pure; units of a plot are those of its viewBox."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Room around a line so that its strokes and dots are not cut off.
_MARGIN = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """One line over evenly spaced steps. low, high: what the plot's bottom and top stand for.

    lines: SVG point lists, one for each stretch without a gap. dots: centres of the values themselves.
    """

    name: str
    unit: str
    width: float
    height: float
    low: float
    high: float
    values: list[float | None]
    lines: list[str]
    dots: list[tuple[float, float]]
    #: Heights of limits that fall into the plot, with their values.
    limits: list[tuple[float, float]]

    @property
    def known(self) -> list[float]:
        return [value for value in self.values if value is not None]

    @property
    def lowest(self) -> float | None:
        return min(self.known, default=None)

    @property
    def highest(self) -> float | None:
        return max(self.known, default=None)


@dataclass(frozen=True, slots=True)
class Segment:
    """One part of a bar: where it begins and how long it is, in the units of the bar."""

    name: str
    value: float
    x: float
    width: float
    share: float


def curve(
    name: str,
    unit: str,
    values: Sequence[float | None],
    *,
    width: float = 240,
    height: float = 80,
    from_zero: bool = False,
    span: Sequence[float] = (),
    limits: Sequence[float | None] = (),
) -> Curve:
    """A line through values, scaled to what they span. A value that is not finite is a gap.

    from_zero: the plot's bottom is 0. span: values that the plot makes room for besides its own. limits: drawn where
    they are within the plot, which they do not widen.
    """
    known = [value if value is not None and math.isfinite(value) else None for value in values]
    finite = [value for value in known if value is not None]
    room = [*finite, *(value for value in span if math.isfinite(value))]
    low = min(room, default=0.0)
    high = max(room, default=1.0)
    if from_zero:
        low = min(low, 0.0)
    if high - low < 1e-9 * max(abs(high), abs(low), 1e-9):
        # A line that does not move runs through the middle, or along the bottom where that is 0.
        spread = abs(high) * 0.1 or 1.0
        low, high = (low, high + spread) if from_zero else (low - spread, high + spread)
    inner_width, inner_height = width - 2 * _MARGIN, height - 2 * _MARGIN

    def x(step: int) -> float:
        return round(_MARGIN + inner_width * (step / (len(known) - 1) if len(known) > 1 else 0.5), 2)

    def y(value: float) -> float:
        return round(_MARGIN + inner_height * (high - value) / (high - low), 2)

    stretches: list[list[tuple[float, float]]] = [[]]
    for step, value in enumerate(known):
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append((x(step), y(value)))
    return Curve(
        name=name,
        unit=unit,
        width=width,
        height=height,
        low=low,
        high=high,
        values=known,
        lines=[" ".join(f"{a:g},{b:g}" for a, b in stretch) for stretch in stretches if len(stretch) > 1],
        dots=[dot for stretch in stretches for dot in stretch],
        limits=[(y(limit), limit) for limit in limits if limit is not None and low <= limit <= high],
    )


def bar(parts: Sequence[tuple[str, float]], *, width: float = 1000) -> list[Segment]:
    """Parts side by side, in their order, over the whole width; parts of nothing at all are left out."""
    positive = [(name, value) for name, value in parts if value > 0 and math.isfinite(value)]
    total = sum(value for _, value in positive)
    segments: list[Segment] = []
    x = 0.0
    for name, value in positive:
        share = value / total
        segments.append(Segment(name, value, round(x, 2), round(share * width, 2), share))
        x += share * width
    return segments
