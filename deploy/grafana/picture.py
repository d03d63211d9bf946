"""A picture of a dashboard without Grafana: its own panels and queries, asked of a running Prometheus.

    python -m deploy.grafana.picture --prometheus http://127.0.0.1:9090 --minutes 10

Places, titles, units, queries and legends are those of the dashboard's JSON; `query_range` gives the data. What is
drawn is drawn by matplotlib: Grafana itself is not run, and the caption says so.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image

from deploy.grafana import drawing
from deploy.grafana.drawing import Shown

_HERE = Path(__file__).parent
_OUT = _HERE.parents[1] / "docs" / "dashboard-operations.png"
#: Points of a line.
_POINTS = 240
#: Colours of the file: a quarter of the bytes, and nothing that can be seen is lost.
_COLOURS = 128


@dataclass(frozen=True, slots=True)
class Series:
    """One line: Unix epoch in seconds, and values; legend as Grafana writes it."""

    legend: str
    times_s: tuple[float, ...]
    values: tuple[float, ...]


class Unanswered(Exception):
    """Prometheus did not answer; the message says what to do."""


class Prometheus:
    """The query API of a running server."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def series(self, expr: str, legend: str, start_s: float, end_s: float) -> list[Series]:
        """What a query gave over that time. Raises Unanswered."""
        step_s = max((end_s - start_s) / _POINTS, 1.0)
        asked = urllib.parse.urlencode({"query": expr, "start": start_s, "end": end_s, "step": step_s})
        try:
            with self._opener.open(f"{self._url}/api/v1/query_range?{asked}", timeout=30) as answer:
                document = json.load(answer)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise Unanswered(f"{self._url} gave no answer to {expr!r} ({error}): is Prometheus there?") from error
        return [_series(result, legend) for result in document["data"]["result"]]


def legend_of(template: str, labels: Mapping[str, str]) -> str:
    """`{{label}}` filled in; without a template Grafana shows the metric with its labels."""
    if template:
        return re.sub(r"{{\s*(\w+)\s*}}", lambda match: labels.get(match[1], ""), template)
    shown = ", ".join(f'{name}="{value}"' for name, value in labels.items() if name != "__name__")
    return f"{labels.get('__name__', '')}{{{shown}}}" if shown else labels.get("__name__", "")


def _series(result: Mapping[str, Any], legend: str) -> Series:
    points = [(float(at_s), float(value)) for at_s, value in result["values"]]
    # Quantiles of nothing are NaN: a gap in the line.
    return Series(
        legend_of(legend, result["metric"]), tuple(at_s for at_s, _ in points), tuple(value for _, value in points)
    )


def collect(document: Mapping[str, Any], prometheus: Prometheus, start_s: float, end_s: float) -> list[Shown]:
    """Each panel with its data. Panels of other sources than Prometheus are left empty."""
    shown = []
    for panel in document["panels"]:
        found = [
            series
            for target in panel["targets"]
            if "expr" in target
            for series in prometheus.series(target["expr"], target.get("legendFormat", ""), start_s, end_s)
        ]
        shown.append(
            Shown(
                title=panel["title"],
                kind=panel["type"],
                unit=panel["fieldConfig"]["defaults"]["unit"],
                place=panel["gridPos"],
                lines={one.legend or "value": (one.times_s, one.values) for one in found},
            )
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.picture", description=__doc__.split("\n\n")[0])
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090", help="where it answers")
    parser.add_argument("--dashboard", type=Path, default=_HERE / "dashboards" / "operations.json")
    parser.add_argument("--minutes", type=float, default=10.0, help="how much of the past")
    parser.add_argument("--until", type=datetime.fromisoformat, help="2026-11-25T12:00:00+00:00  [default: now]")
    parser.add_argument("--out", type=Path, default=_OUT)
    options = parser.parse_args(arguments)
    document = json.loads(options.dashboard.read_text())
    end_s = options.until.timestamp() if options.until else time.time()
    try:
        shown = collect(document, Prometheus(options.prometheus), end_s - options.minutes * 60, end_s)
    except Unanswered as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    caption = (
        f"{document['title']} - drawn from the dashboard's own queries by deploy/grafana/picture.py; "
        "Grafana itself was not run"
    )
    drawing.draw(shown, caption, options.out, (end_s - options.minutes * 60, end_s))
    with Image.open(options.out) as picture:
        picture.convert("RGB").quantize(_COLOURS).save(options.out, optimize=True)
    empty = [one.title for one in shown if not one.lines]
    print(
        f"{options.out}: {len(shown)} panels, {options.out.stat().st_size // 1000} KB; without data: {empty or 'none'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
