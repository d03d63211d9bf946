"""The load test runs against the stack as the checklist writes it, and leaves a report with charts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running_stack import RunningStack

pytestmark = [pytest.mark.stack, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def test_robots_of_the_load_test_get_their_actions_and_the_report_has_charts(
    stack: RunningStack, tmp_path: Path
) -> None:
    report = tmp_path / "report.html"
    command = [
        *(sys.executable, "-m", "locust", "-f", "tests/load/locustfile.py", "--host", stack.api),
        *("--headless", "--users", "3", "--spawn-rate", "3", "--run-time", "6s", "--stop-timeout", "10"),
        *("--html", str(report), "--only-summary"),
    ]
    environment = {**os.environ, "API_KEY": stack.file["api_key"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    text = report.read_text()
    assert "POST /v1/inference" in text
    assert '"history"' in text
    assert stack.file["api_key"] not in text
