"""Restarts the roles of a running embedded stack one process after another, so that each kind always has one."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from runtime.errors import Fatal
from runtime.lifecycle import Deadline
from runtime.stack.layout import Layout, read_json, write_json
from runtime.stack.roles import answers_ready
from runtime.stack.stack import is_running

_TIMEOUT_S = 90.0
_POLL_S = 0.1


def runs_beside(stack_file: Path) -> bool:
    """Whether an embedded stack runs that this file describes."""
    return stack_file.exists() and is_running(stack_file.parent)


def keep_fleets(stack_file: Path, fleets: Sequence[str]) -> None:
    """Have the supervisor tell these fleets in stack.json, which it writes at each restart."""
    write_json(Layout(stack_file.parent).fleets_file, list(fleets))


def roll(stack_file: Path, roles: Sequence[str], say: Callable[[str], None]) -> None:
    """SIGTERM to each process of these roles, and wait for the next one until it is ready. Raises Fatal."""
    for role in roles:
        for process in _processes(stack_file, role):
            say(f"restarting {role} ({process['metrics']})")
            # One that died by itself has a successor that reads the same.
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGTERM)
            _wait_for_successor(stack_file, role, process)


def _processes(stack_file: Path, role: str) -> list[dict[str, Any]]:
    document = read_json(stack_file) or {"processes": []}
    return [process for process in document["processes"] if process["role"] == role]


def _wait_for_successor(stack_file: Path, role: str, old: dict[str, Any]) -> None:
    deadline = Deadline(_TIMEOUT_S)
    port = int(old["metrics"].rsplit(":", 1)[1].split("/")[0])
    while not deadline.passed:
        now = [process for process in _processes(stack_file, role) if process["metrics"] == old["metrics"]]
        if now and now[0]["pid"] != old["pid"] and answers_ready(port):
            return
        time.sleep(_POLL_S)
    raise Fatal(f"{role} is not ready {_TIMEOUT_S:.0f} s after its restart: see `vlastream ps` and its log")
