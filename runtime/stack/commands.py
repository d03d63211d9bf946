"""`vlastream up`, `down` and `ps`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from runtime.errors import Fatal
from runtime.lifecycle import Deadline
from runtime.settings import load_settings
from runtime.stack.component import Say
from runtime.stack.identity import Identity, end_processes
from runtime.stack.layout import Layout, read_json
from runtime.stack.roles import answers_ready
from runtime.stack.security import check_secure
from runtime.stack.stack import Stack, is_running

FOLDER = Path(".vlastream")
_DEMO_TOWER = Path(__file__).resolve().parents[2] / "examples" / "tabletop" / "vision_tower"
#: Last line on the progress pipe of a background start that went well.
_UP = "up"
_STOP_TIMEOUT_S = 75.0


def _print(line: str) -> None:
    print(line, flush=True)


def up(
    *, foreground: bool = False, secure: bool = False, folder: Path = FOLDER, api_port: int = 8000, say: Say = _print
) -> int:
    """Start the stack and wait until it serves; returns the exit status.

    In the background a supervisor of its own session stays; with `foreground` this program is the supervisor until
    SIGINT or SIGTERM, and a second one ends everything at once.
    """
    layout = Layout(folder)
    try:
        layout.create()
        if is_running(folder):
            if secure:
                check_secure(layout)
            say("the stack runs already")
            _describe(layout, say)
        elif foreground:
            run_supervisor(layout, api_port=api_port, secure=secure, say=say)
        else:
            _start_in_background(layout, api_port, secure, say)
    except Fatal as error:
        say(f"error: {error}")
        return 1
    return 0


def _demo_models() -> dict[str, str]:
    """The demo's own vision tower, unless an image model is chosen: CLIP's weights come with no package."""
    chosen = "image_embedding_model" in load_settings().model_fields_set
    return {} if chosen or not _DEMO_TOWER.is_dir() else {"IMAGE_EMBEDDING_MODEL": str(_DEMO_TOWER)}


def run_supervisor(layout: Layout, *, api_port: int, say: Say, secure: bool = False, told: Say | None = None) -> None:
    """Be the supervisor until a signal. `told` hears the word `up` once the stack serves. Raises Fatal."""
    stack = Stack(layout, env=_demo_models(), api_port=api_port, secure=secure, say=say)

    def handle(signum: int, frame: FrameType | None) -> None:
        stack.request_stop()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        stack.start()
        if told is not None:
            told(_UP)
        else:
            _describe(layout, say)
        stack.wait()
        say("the stack has ended")
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _start_in_background(layout: Layout, api_port: int, secure: bool, say: Say) -> None:
    reading, writing = os.pipe()
    with layout.log("supervisor").open("ab") as output:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "runtime.stack", str(layout.folder), str(api_port), str(int(secure)), str(writing)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[writing],
            start_new_session=True,
        )
    os.close(writing)
    last = ""
    try:
        with os.fdopen(reading) as progress:
            for line in progress:
                last = line.rstrip("\n")
                if last == _UP:
                    break
                say(last)
    except KeyboardInterrupt:
        supervisor.terminate()
        supervisor.wait()
        raise Fatal("interrupted; the stack was stopped") from None
    if last != _UP:
        supervisor.wait()
        raise Fatal(f"the stack did not start; all that was told is in {layout.log('supervisor')}")
    # It outlives this program on purpose.
    supervisor.returncode = 0
    _describe(layout, say)


def _describe(layout: Layout, say: Say) -> None:
    stack = read_json(layout.stack_file)
    if stack is None:
        say(f"it is starting or stopping; see {layout.folder / 'logs' / 'supervisor.log'}")
        return
    say(f"API      {stack['api']}  (its reference: {stack['api']}/docs)")
    say(f"key      api_key in {layout.stack_file}, with the addresses and passwords of all servers")
    if "security" in stack:
        say("secure   TLS and users everywhere: what clients need is in security and fleet_users of the same file")
    say(f"logs     {layout.folder / 'logs'}")
    say("look     vlastream ps")
    say("stop     vlastream down")


def down(*, folder: Path = FOLDER, say: Say = _print) -> int:
    """Stop the stack of this folder, or what a supervisor that is gone has left of it; returns the exit status."""
    layout = Layout(folder)
    record = read_json(layout.processes_file) or {}
    children = [Identity.from_json(child) for child in record.get("children", ())]
    supervisor = Identity.from_json(record["supervisor"]).process() if record.get("supervisor") else None
    if supervisor is None or not is_running(folder):
        left = end_processes(children, Deadline(10))
        layout.stack_file.unlink(missing_ok=True)
        say(f"ended {left} processes without a supervisor" if left else "no stack runs here")
        return 0
    supervisor.terminate()
    began_s = time.monotonic()
    while time.monotonic() - began_s < _STOP_TIMEOUT_S:
        try:
            supervisor.wait(timeout=2)
            say(f"the stack has ended after {time.monotonic() - began_s:.1f} s")
            return 0
        except psutil.TimeoutExpired:
            say(f"stopping ({time.monotonic() - began_s:.0f} s)")
    supervisor.kill()
    end_processes(children, Deadline(5))
    say("the stack did not end in time and was killed; the next `vlastream up` recovers")
    return 1


def ps(*, folder: Path = FOLDER) -> int:
    """Print a table of the processes; returns the exit status."""
    from rich.console import Console
    from rich.table import Table

    layout = Layout(folder)
    console = Console()
    stack = read_json(layout.stack_file)
    if stack is None or not is_running(folder):
        console.print("no stack runs here: start one with `vlastream up`")
        return 0
    table = Table("role", "pid", "uptime", "state", "metrics", box=None)
    for process in stack["processes"]:
        table.add_row(process["role"], str(process["pid"]), *_state(process), process["metrics"] or "-")
    console.print(table)
    console.print(f"API {stack['api']}, supervisor {stack['supervisor_pid']}")
    return 0


def _state(process: dict[str, Any]) -> tuple[str, str]:
    identity = Identity.of(process["pid"])
    if identity is None:
        return "-", "dead"
    uptime = f"{max(time.time() - identity.create_time, 0):.0f} s"
    if process["metrics"] is None:
        return uptime, "running"
    port = int(process["metrics"].rsplit(":", 1)[1].split("/")[0])
    return uptime, "ready" if answers_ready(port) else "not ready"
