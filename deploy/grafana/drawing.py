"""Panels drawn by matplotlib where Grafana's grid of 24 columns puts them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

mpl.use("Agg")
_COLUMNS = 24
_WIDTH_IN, _UNIT_IN, _DPI = 15.0, 0.27, 88
_PAGE, _PANEL, _EDGE, _TEXT, _FAINT = "#111217", "#181b1f", "#2a2d33", "#d8d9da", "#8e8e8e"
#: Grafana's classic palette.
_LINES = ("#73bf69", "#f2cc0c", "#8ab8ff", "#ff780a", "#f2495c", "#5794f2", "#b877d9", "#705da0", "#37872d", "#fade2a")
#: Legends below a panel.
_MOST_NAMED, _NAMED_A_ROW = 9, 3
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")

Points = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Shown:
    """A panel with its data. place: gridPos of the dashboard. lines: legend -> times in Unix seconds, values."""

    title: str
    kind: str
    unit: str
    place: Mapping[str, int]
    lines: Mapping[str, Points]


def draw(panels: Sequence[Shown], caption: str, path: Path, span_s: tuple[float, float]) -> None:
    """span_s: the time that is shown, Unix epoch."""
    rows = max(panel.place["y"] + panel.place["h"] for panel in panels)
    # A unit of the grid below for the caption.
    height = rows + 1.6
    with plt.rc_context({"font.size": 7.5, "text.color": _TEXT, "axes.edgecolor": _EDGE, "font.family": "DejaVu Sans"}):
        figure = plt.figure(figsize=(_WIDTH_IN, height * _UNIT_IN), facecolor=_PAGE)
        for panel in panels:
            _panel(figure, panel, height, span_s)
        figure.text(0.5, 0.5 / height, caption, ha="center", va="center", color=_FAINT, fontsize=8.5)
        figure.savefig(path, dpi=_DPI, facecolor=_PAGE)
        plt.close(figure)


def human(value: float, unit: str) -> str:
    """A value as Grafana writes it: 250 ms, 1.2 KiB, 98.6%."""
    if math.isnan(value):
        return "NaN"
    match unit:
        case "s":
            return _seconds(value)
        case "percentunit":
            return f"{value * 100:.3g}%"
        case "percent":
            return f"{value:.3g}%"
        case "celsius":
            return f"{value:.3g} °C"
        case "bytes":
            power = min(int(math.log(max(abs(value), 1), 1024)), len(_BINARY) - 1)
            return f"{value / 1024**power:.3g} {_BINARY[power]}"
        case "reqps":
            return f"{value:.3g} req/s"
        case "cps":
            return f"{value:.3g} c/s"
    return f"{value / 1000:.3g} K" if abs(value) >= 10_000 else f"{value:.4g}"


def _seconds(value: float) -> str:
    size = abs(value)
    if size == 0 or size >= 1:
        return f"{value:.3g} s"
    return f"{value * 1000:.3g} ms" if size >= 1e-3 else f"{value * 1e6:.3g} µs"


def _panel(figure: Figure, panel: Shown, height: float, span_s: tuple[float, float]) -> None:
    x, y, w, h = (panel.place[key] for key in "xywh")
    gap = 0.12
    left, width = (x + gap / 2) / _COLUMNS, (w - gap) / _COLUMNS
    bottom, tall = 1 - (y + h - gap) / height, (h - gap * 2) / height
    frame = figure.add_axes((left, bottom, width, tall), facecolor=_PANEL)
    frame.set(xticks=[], yticks=[])
    frame.text(0.02, 0.965, panel.title, transform=frame.transAxes, va="top", fontsize=9)
    if not panel.lines:
        frame.text(0.5, 0.45, "No data", transform=frame.transAxes, ha="center", va="center", color=_FAINT, fontsize=11)
    elif panel.kind == "timeseries":
        # Room for the legend and the times.
        low = 0.12 + 0.065 * math.ceil(min(len(panel.lines), _MOST_NAMED) / _NAMED_A_ROW)
        place = (left + width * 0.13, bottom + tall * low, width * 0.84, tall * (0.85 - low))
        inner = figure.add_axes(place, facecolor=_PANEL)
        _lines(inner, frame, panel, span_s)
    else:
        _numbers(frame, panel)


def _lines(axes: Axes, frame: Axes, panel: Shown, span_s: tuple[float, float]) -> None:
    for number, (legend, (times_s, values)) in enumerate(panel.lines.items()):
        axes.plot(times_s, values, color=_LINES[number % len(_LINES)], linewidth=1.1, label=legend)
    finite = [v for _, values in panel.lines.values() for v in values if math.isfinite(v)]
    axes.set_ylim(0, max([*finite, 0]) * 1.08 or 1.0)
    axes.set_xlim(*span_s)
    axes.set_xticks(np.linspace(*span_s, 6)[1:-1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda at_s, _: datetime.fromtimestamp(at_s, UTC).strftime("%H:%M")))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human(value, panel.unit)))
    axes.tick_params(colors=_FAINT, length=0, labelsize=7)
    axes.grid(color=_EDGE, linewidth=0.6)
    for spine in axes.spines.values():
        spine.set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    shown = [name if len(name) <= 26 else f"{name[:25]}…" for name in names[:_MOST_NAMED]]
    if len(names) > len(shown):
        shown[-1] = f"and {len(names) - len(shown) + 1} more"
    frame.legend(
        handles[: len(shown)],
        shown,
        loc="lower left",
        ncols=_NAMED_A_ROW,
        fontsize=7,
        frameon=False,
        labelcolor=_TEXT,
        handlelength=1.0,
        columnspacing=0.9,
        labelspacing=0.2,
        borderaxespad=0.1,
    )


def _numbers(frame: Axes, panel: Shown) -> None:
    """Stat, bar gauge, table: the last value of each line, the largest first."""
    last = {legend: values[-1] for legend, (_, values) in panel.lines.items()}
    chosen = sorted(last.items(), key=lambda item: -item[1])[:4]
    for number, (legend, value) in enumerate(chosen):
        at = 0.45 - (number - (len(chosen) - 1) / 2) * 0.22
        size = 20 if len(chosen) == 1 else 11
        frame.text(
            0.5, at, human(value, panel.unit), transform=frame.transAxes, ha="center", va="center", color=_LINES[0],
            fontsize=size, weight="bold",
        )  # fmt: skip
        if legend and legend != "value":
            below = at - (0.17 if len(chosen) == 1 else 0.09)
            frame.text(
                0.5, below, legend, transform=frame.transAxes, ha="center", va="center", color=_FAINT, fontsize=7
            )
