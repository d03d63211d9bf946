"""The picture of a dashboard: its own queries, asked of Prometheus, and what became of each told."""

from __future__ import annotations

import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from deploy.grafana.drawing import human
from deploy.grafana.picture import legend_of, main

_DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards" / "operations.json"


class _Answers(BaseHTTPRequestHandler):
    """Two series for every query but those about GPUs, as Prometheus writes them."""

    asked: list[str] = []

    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        expr, start_s = query["query"][0], float(query["start"][0])
        self.asked.append(expr)
        values = [[start_s + 60 * step, "NaN" if step == 3 else str(step)] for step in range(10)]
        names = [] if "gpu" in expr else ["a", "b"]
        result = [{"metric": {"deployment": name, "stage": name}, "values": values} for name in names]
        body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": result}}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass


@pytest.fixture
def prometheus() -> Iterator[str]:
    _Answers.asked = []
    with HTTPServer(("127.0.0.1", 0), _Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_every_query_of_the_dashboard_is_asked_and_drawn_where_its_panel_stands(
    prometheus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "picture.png"
    assert main(["--prometheus", prometheus, "--out", str(out)]) == 0
    panels = json.loads(_DASHBOARD.read_text())["panels"]
    assert _Answers.asked == [target["expr"] for panel in panels for target in panel["targets"]]
    told = capsys.readouterr().out
    assert f"{len(panels)} panels" in told
    assert "'GPU utilization'" in told, "what has no data is named"
    with Image.open(out) as picture:
        assert picture.width > 1000
        assert len(picture.convert("RGB").getcolors(2**24) or ()) > 10
    assert out.stat().st_size < 250_000


def test_without_prometheus_it_says_so_and_draws_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "picture.png"
    assert main(["--prometheus", "http://127.0.0.1:9", "--out", str(out)]) == 1
    assert "is Prometheus there?" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("template", "expected"), [("p95 {{ stage }}", "p95 infer"), ("{{none}}", ""), ("", 'm{stage="infer"}')]
)
def test_legends_are_filled_in_as_grafana_does(template: str, expected: str) -> None:
    assert legend_of(template, {"__name__": "m", "stage": "infer"}) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.25, "s", "250 ms"), (2e-5, "s", "20 µs"), (90, "s", "90 s"), (0.986, "percentunit", "98.6%"),
        (1536, "bytes", "1.5 KiB"), (3.0, "reqps", "3 req/s"), (25_000, "short", "25 K"), (float("nan"), "s", "NaN"),
    ],
)  # fmt: skip
def test_values_are_written_in_their_units(value: float, unit: str, expected: str) -> None:
    assert human(value, unit) == expected
