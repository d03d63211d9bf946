"""The load test runs against the stack as the checklist writes it, and leaves a report with charts."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running_stack import RunningStack

pytestmark = [pytest.mark.stack, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
_NAMES = ("POST /v1/inference", "WS connect", "WS infer", "WS reconnect and resume")


def test_robots_of_both_kinds_get_their_actions_and_the_report_has_charts(stack: RunningStack, tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    command = [
        *(sys.executable, "-m", "locust", "-f", "tests/load/locustfile.py", "--host", stack.api),
        *("--headless", "--users", "4", "--spawn-rate", "4", "--run-time", "20s", "--stop-timeout", "10"),
        *("--drop-every", "2", "--html", str(report), "--csv", str(tmp_path / "load"), "--only-summary"),
    ]
    environment = {**os.environ, "API_KEY": stack.file["api_key"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text()
    assert '"history"' in text
    with (tmp_path / "load_stats.csv").open() as file:
        rows = {row["Name"]: row for row in csv.DictReader(file)}
    assert {*_NAMES} <= rows.keys(), done.stdout
    for name in _NAMES:
        assert name in text
        row = rows[name]
        assert int(row["Request Count"]) > int(row["Failure Count"]), row
    assert float(rows["WS infer"]["Average Content Size"]) > 0
    assert stack.file["api_key"] not in text
