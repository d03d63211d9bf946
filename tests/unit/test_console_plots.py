"""Geometry of the console's plots, and how figures are written."""

from __future__ import annotations

import itertools
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_api.console import formats
from ingest_api.console.plots import bar, curve

VALUES = st.lists(st.none() | st.floats(width=32), max_size=60)


def points(line: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]


@given(VALUES, st.booleans())
def test_every_point_of_a_curve_is_within_its_picture(values: list[float | None], from_zero: bool) -> None:
    drawn = curve("dx", "m", values, width=200, height=50, from_zero=from_zero)
    spots = [spot for line in drawn.lines for spot in points(line)] + drawn.dots
    assert all(0 <= x <= 200 and 0 <= y <= 50 for x, y in spots)
    assert len(drawn.dots) == sum(value is not None and math.isfinite(value) for value in values)


def test_a_curve_rises_where_its_values_do() -> None:
    (line,) = curve("dx", "m", [0.0, 1.0, 2.0]).lines
    xs, ys = zip(*points(line), strict=True)
    assert list(xs) == sorted(xs)
    assert list(ys) == sorted(ys, reverse=True)


def test_what_is_not_finite_is_a_gap_and_no_line_through_it() -> None:
    drawn = curve("dx", "m", [0.0, 1.0, math.nan, 2.0, math.inf, 1.0, 0.0])
    assert [len(points(line)) for line in drawn.lines] == [2, 2]
    assert (drawn.low, drawn.high) == (0.0, 2.0)


def test_a_limit_is_drawn_where_it_is_in_sight_and_widens_nothing() -> None:
    drawn = curve("dx", "m", [-1.0, 1.0], limits=(-9.0, 0.5))
    assert [value for _, value in drawn.limits] == [0.5]
    assert (drawn.low, drawn.high) == (-1.0, 1.0)


def test_a_curve_without_values_is_empty_and_has_no_extremes() -> None:
    drawn = curve("dx", "m", [])
    assert (drawn.lines, drawn.dots, drawn.lowest, drawn.highest) == ([], [], None, None)


@given(st.lists(st.tuples(st.text(max_size=5), st.floats(min_value=-10, max_value=1e6)), max_size=8))
def test_the_parts_of_a_bar_lie_side_by_side_and_fill_it(parts: list[tuple[str, float]]) -> None:
    segments = bar(parts, width=1000)
    assert [each.name for each in segments] == [name for name, value in parts if value > 0]
    for before, after in itertools.pairwise(segments):
        assert after.x == pytest.approx(before.x + before.width, abs=0.02)
    if segments:
        assert segments[-1].x + segments[-1].width == pytest.approx(1000, abs=0.02)
        assert sum(each.share for each in segments) == pytest.approx(1)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formats.milliseconds(8.44), "8.4 ms"), (formats.milliseconds(124.4), "124 ms"),
        (formats.milliseconds(2314), "2.31 s"), (formats.milliseconds(None), "\N{EN DASH}"),
        (formats.number(0), "0"), (formats.number(12345), "12,345"), (formats.number(0.034), "0.034"),
        (formats.number(7.256), "7.26"), (formats.byte_count(1536), "1.5 KiB"), (formats.byte_count(5), "5 B"),
        (formats.byte_count(80 * 2**30), "80.0 GiB"), (formats.percent(99.4), "99 %"), (formats.percent(0.4), "0.4 %"),
        (formats.words("safety_rejected"), "safety rejected"), (formats.capitalize_first("a b."), "A b"),
        (formats.moment(datetime(2026, 1, 31, 12, tzinfo=UTC)), "2026-01-31 12:00:00.000 UTC"),
    ],
)  # fmt: skip
def test_figures_are_written_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected
