"""The whole stack with small programs for roles: what it tells, what it keeps running, what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from runtime.errors import Fatal
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from runtime.stack.identity import Identity
from runtime.stack.layout import Layout, read_json
from runtime.stack.roles import Role, SetupStep, answers_ready
from runtime.stack.scaling import scale_role
from runtime.stack.stack import Stack, is_running

pytestmark = [pytest.mark.stack, pytest.mark.slow]

_ROLE = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/readyz" else 404)
        self.end_headers()
port = int(os.environ.get("PORT") or os.environ["METRICS_PORT"])
http.server.HTTPServer((os.environ["HOST"], port), Handler).serve_forever()
"""
_PROGRAM = (sys.executable, "-c", _ROLE)
ROLES = (
    Role("api", _PROGRAM, serves_api=True),
    Role("gate", _PROGRAM, count=2),
    Role("sink postgres", _PROGRAM),
)
_MAKE_TABLE = (
    "import os, psycopg; c = psycopg.connect(os.environ['DATABASE_URL'], autocommit=True); "
    "c.execute('CREATE TABLE IF NOT EXISTS starts (n int)'); c.execute('INSERT INTO starts VALUES (1)'); c.close()"
)
SETUP_STEPS = (
    SetupStep("database", (sys.executable, "-c", _MAKE_TABLE)),
    SetupStep("key", ("echo", "the key is vla_secret"), makes_secret="api_key"),
)


def test_the_stack_describes_itself_and_restarts_what_dies_at_the_same_port(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "stack")
    with Stack(layout, roles=ROLES, setup_steps=SETUP_STEPS):
        told = read_json(layout.stack_file)
        addresses = {"api", "kafka", "database", "redis", "s3", "api_key"}
        assert set(told) == addresses | {"fleets", "processes", "replicas", "supervisor_pid"}
        assert set(told["s3"]) == {"endpoint", "bucket", "access_key", "secret_key"}
        assert told["api_key"] == "vla_secret"
        assert [process["role"] for process in told["processes"]] == [
            *("kafka", "postgres", "valkey", "s3", "api", "gate", "gate", "sink postgres"),
        ]
        assert [p["metrics"] is None for p in told["processes"]].count(True) == 4
        assert "vla_secret" not in "".join(path.read_text() for path in (layout.folder / "logs").iterdir())
        with pytest.raises(Fatal, match="already runs"):
            Stack(layout).start()

        for role in ("sink postgres", "postgres"):
            old = _process(told, role)
            os.kill(old["pid"], signal.SIGKILL)
            _until(partial(_restarted, layout, role, old), f"{role} comes back")
        with psycopg.connect(told["database"]) as connection:
            assert connection.execute("SELECT count(*) FROM starts").fetchone() == (1,)
        left = [Identity.of(process["pid"]) for process in read_json(layout.stack_file)["processes"]]
    assert len(left) == 8
    assert not any(identity and identity.process() for identity in left)
    assert not layout.stack_file.exists()
    assert not is_running(layout.folder)


def test_a_role_gets_the_number_of_processes_that_is_asked_for_and_the_first_ones_stay(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "stack")
    told: list[str] = []
    with Stack(layout, roles=ROLES, setup_steps=SETUP_STEPS, say=told.append):
        settings = Settings(_env_file=None, stack_file=layout.stack_file, kafka_partitions=4)
        before = _processes(layout, "gate")
        answers: list[str] = []
        scale_role(settings, "gate", 5, wait_s=60, say=answers.append)
        assert answers[0] == "gate: 5 ready (before: 2)"
        assert "what gate reads has 4 partitions" in answers[1]
        grown = _processes(layout, "gate")
        assert [p["pid"] for p in grown[:2]] == [p["pid"] for p in before]
        assert len({p["metrics"] for p in grown}) == 5
        scale_role(settings, "gate", 1, wait_s=60, say=answers.append)
        assert [p["pid"] for p in _processes(layout, "gate")] == [before[0]["pid"]]
        assert not any(psutil.pid_exists(p["pid"]) for p in grown[1:])
        assert read_json(layout.stack_file)["replicas"] == {"api": 1, "gate": 1, "sink postgres": 1}

        os.kill(before[0]["pid"], signal.SIGKILL)
        _until(lambda: _restarted(layout, "gate", before[0]), "the one that is left is kept running")
        scale_role(settings, "sink-postgres", 0, wait_s=60, say=answers.append)
        assert _processes(layout, "sink postgres") == []
        with pytest.raises(Fatal, match="there are api, gate, sink-postgres"):
            scale_role(settings, "gpu", 1, wait_s=60)
    assert sum("gate: 5 instead of 2 processes" in line for line in told) == 1
    with pytest.raises(Fatal, match="`vlastream up`"):
        scale_role(settings, "gate", 1, wait_s=60)


_SUPERVISING = """
import sys
from pathlib import Path
from runtime.stack.layout import Layout
from runtime.stack.scaling import scale_role
from runtime.stack.stack import Stack
from tests.integration.test_stack import ROLES, SETUP_STEPS
stack = Stack(Layout(Path(sys.argv[1])), roles=ROLES, setup_steps=SETUP_STEPS, say=lambda line: None)
stack.start()
print("ready", flush=True)
stack.wait()
"""


def test_after_a_kill_of_the_supervisor_the_next_start_has_all_data_and_no_second_server(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "stack")
    with subprocess.Popen([sys.executable, "-c", _SUPERVISING, str(layout.folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = read_json(layout.stack_file)
        old = [Identity.of(child["pid"]) for child in before["processes"]]
        process.kill()
    with Stack(layout, roles=ROLES, setup_steps=SETUP_STEPS) as stack:
        assert not any(identity and identity.process() for identity in old)
        after = read_json(stack.layout.stack_file)
        assert {name: after[name] for name in ("kafka", "database", "redis", "s3", "api_key")} == {
            name: before[name] for name in ("kafka", "database", "redis", "s3", "api_key")
        }
        with psycopg.connect(after["database"]) as connection:
            assert connection.execute("SELECT count(*) FROM starts").fetchone() == (2,)


def test_a_failed_set_up_step_is_told_and_leaves_no_process(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "stack")
    steps = [SetupStep("topics", (sys.executable, "-c", "raise SystemExit('no such broker')"))]
    with pytest.raises(Fatal, match=r"failed with status 1(.|\n)*no such broker"):
        Stack(layout, roles=ROLES, setup_steps=steps).start()
    assert read_json(layout.processes_file)["children"] == []
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or ())]


def _processes(layout: Layout, role: str) -> list[dict[str, Any]]:
    return [process for process in read_json(layout.stack_file)["processes"] if process["role"] == role]


def _process(stack: dict[str, Any], role: str) -> dict[str, Any]:
    return next(process for process in stack["processes"] if process["role"] == role)


def _restarted(layout: Layout, role: str, old: dict[str, Any]) -> bool:
    """Whether the role runs again as another process, and serves where it did."""
    stack = read_json(layout.stack_file)
    new = next((process for process in stack["processes"] if process["role"] == role), None)
    if new is None or new["pid"] == old["pid"]:
        return False
    if new["metrics"] is not None:
        port = int(old["metrics"].rsplit(":", 1)[1].split("/")[0])
        return bool(new["metrics"] == old["metrics"]) and answers_ready(port)
    try:
        psycopg.connect(stack["database"], connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = Deadline(60)
    while not condition():
        assert not deadline.passed, f"never came: {what}"
        time.sleep(0.02)
