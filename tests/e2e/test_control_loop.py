"""The control loop example, over each transport, through the whole stack."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.control_loop import main
from runtime.settings import Settings
from sinks.books import read_books
from tests.e2e.running_stack import RunningStack

pytestmark = [pytest.mark.stack, pytest.mark.slow]


@pytest.mark.parametrize(("transport", "rate"), [("rest", 50), ("websocket", 10), ("kafka", 20)])
def test_a_robot_does_its_task_at_its_rate_over_each_transport(
    stack: RunningStack,
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    transport: str,
    rate: int,
) -> None:
    bootstrap = stack.file["kafka"]
    key = stack.file["api_key"]
    robot = f"loop-{transport}"
    options = ["--transport", transport, "--rate", str(rate), "--episodes", "2", "--robot-id", robot]
    # Empty on a plain Kafka.
    properties = tmp_path / "kafka.properties"
    properties.write_text("".join(f"{name}={value}\n" for name, value in stack.fleet_security("demo").items()))
    options += ["--kafka-properties", str(properties)]
    ended = main([stack.api, key, "--bootstrap", bootstrap, *options])
    said = capsys.readouterr().out
    assert ended == 0, said
    assert f"success over {transport}" in said
    assert "stale" in said
    assert read_books(settings, wait_s=60).balanced
    asked = stack.rows("SELECT count(*), count(DISTINCT episode_id) FROM inference_log WHERE robot_id = %s", robot)
    assert asked[0][0] > 2
    assert asked[0][1] == 2
