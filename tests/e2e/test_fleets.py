"""A fleet is added and removed while others are served: nothing is lost, and its robot is served in between."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime.fleets.commands import add_fleet, list_fleets, remove_fleet
from runtime.kafka import security_config
from runtime.settings import Settings
from tests.e2e.running_stack import RunningStack
from tests.e2e.test_faults import Load, assert_balanced

pytestmark = [pytest.mark.stack, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
FLEET = "west"


@pytest.mark.timeout(900)
def test_a_fleet_that_comes_and_goes_under_load_leaves_the_books_balanced(
    stack: RunningStack, settings: Settings, tmp_path: Path
) -> None:
    said: list[str] = []
    with Load(stack) as load:
        load.wait_for(5)
        gates = stack.pids("gate")
        add_fleet(settings, FLEET, bytes_per_s=20e6, request_percent=50, who="test", say=said.append)
        assert not set(gates) & set(stack.pids("gate")), "every gate was restarted"
        assert stack.file["fleets"] == f"demo,{FLEET}"
        assert [line.split()[0] for line in list_fleets(settings)] == ["demo", FLEET]
        done = drive_robot(settings, said, tmp_path / "fleet.properties")
        assert "safety" in done.stdout, done.stdout + done.stderr
        remove_fleet(settings, FLEET, delete_topics=False, wait_s=60, say=said.append)
        assert stack.file["fleets"] == "demo"
        load.wait_for(5)
    books = assert_balanced(settings, load.ledger)
    assert books.requests > 0
    customers = stack.rows("SELECT count(*) FROM inference_log WHERE customer_id = %s", FLEET)
    assert customers[0][0] >= 1, "the fleet's requests have rows"


def drive_robot(settings: Settings, said: list[str], properties: Path) -> subprocess.CompletedProcess[str]:
    """The example robot plays an episode as the new fleet's, with what `fleets add` printed."""
    connection = {"bootstrap.servers": settings.kafka_bootstrap_servers, **security_config(settings)}
    printed = dict(line.split()[:2] for line in said if line.startswith(("username", "password")))
    connection |= {f"sasl.{name}": value for name, value in printed.items()}
    properties.write_text("".join(f"{name}={value}\n" for name, value in connection.items()))
    command = [sys.executable, "-m", "examples.fleet_robot", str(properties), FLEET, "west-arm-1", "20000"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
