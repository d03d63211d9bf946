"""The embedded stack as the demo finds, starts, harms and leaves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from runtime.errors import Fatal
from runtime.settings import Settings
from runtime.stack.layout import read_json
from runtime.stack.stack import is_running
from runtime.stack_file import settings_of

#: The fleet whose robots produce to Kafka themselves; the embedded stack has it in its settings.
FLEET = "demo"
READY_TIMEOUT_S = 120.0
POLL_S = 0.5
#: What a stop may take before the demo stops waiting for it.
STOP_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Process:
    role: str
    pid: int


@dataclass(frozen=True, slots=True)
class Stack:
    """The content of stack.json at one moment."""

    document: Mapping[str, Any]

    @property
    def api(self) -> str:
        return str(self.document["api"])

    @property
    def api_key(self) -> str:
        return str(self.document["api_key"])

    @property
    def kafka(self) -> str:
        return str(self.document["kafka"])

    @property
    def database(self) -> str:
        return str(self.document["database"])

    @property
    def processes(self) -> list[Process]:
        return [Process(str(p["role"]), int(p["pid"])) for p in self.document["processes"]]

    def settings(self) -> Settings:
        """Settings of a process that talks to this stack."""
        return Settings(**settings_of({**self.document, "fleets": FLEET}))

    def fleet_security(self) -> dict[str, str]:
        """What a robot of the demo's fleet tells Kafka of itself."""
        return fleet_security(self.document, FLEET)


def fleet_security(document: Mapping[str, Any], fleet: str) -> dict[str, str]:
    """librdkafka's properties for a fleet's user of a secure stack; none where the stack is in plain text."""
    if "security" not in document:
        return {}
    settings, user = document["security"], document["fleet_users"][fleet]
    return {
        "security.protocol": settings["kafka_security_protocol"],
        "sasl.mechanism": settings["kafka_sasl_mechanism"],
        "sasl.username": user["username"],
        "sasl.password": user["password"],
        "ssl.ca.location": settings["kafka_ssl_ca_location"],
    }


def read_stack(path: Path) -> Stack | None:
    """The stack that runs with this file, None if none does or it is not up yet."""
    document = read_json(path) if is_running(path.parent) else None
    return Stack(document) if document is not None else None


def is_ready(stack: Stack) -> bool:
    """Whether the API answers that it is ready."""
    try:
        reply = httpx.get(f"{stack.api}/readyz", timeout=2.0, trust_env=False)
    except httpx.HTTPError:
        return False
    return reply.status_code == httpx.codes.OK


def ensure_up(path: Path, say: Callable[[str], None], *, secure: bool = False) -> tuple[Stack, bool]:
    """A ready stack, and whether it was started here. Raises Fatal if none gets ready."""
    stack = read_stack(path)
    started = stack is None
    if stack is None:
        say("starting the embedded stack: Kafka, Postgres, Valkey, S3 and every role")
        # Its own output is its progress.
        done = subprocess.run([sys.executable, "-m", "runtime.cli", "up", *(["--secure"] if secure else [])])
        if done.returncode:
            raise Fatal(f"`vlastream up` ended with status {done.returncode}: what it says above tells why")
    end = time.monotonic() + READY_TIMEOUT_S
    said = time.monotonic()
    while True:
        stack = read_stack(path)
        if stack is not None and is_ready(stack):
            return stack, started
        now = time.monotonic()
        if now >= end:
            raise Fatal(
                f"the stack is not ready after {READY_TIMEOUT_S:.0f} s: see `vlastream ps` and {path.parent}/logs"
            )
        if now - said >= 2.0:
            said = now
            say("waiting for the API to be ready")
        time.sleep(POLL_S)


def kill_role(path: Path, role: str) -> str:
    """kill -9 of the first process of a role; returns a sentence. Raises Fatal for a role that does not run."""
    stack = read_stack(path)
    victim = victim_of(stack.processes if stack is not None else [], role)
    os.kill(victim.pid, signal.SIGKILL)
    return f"kill -9 of {victim.role} (process {victim.pid})"


def victim_of(processes: Sequence[Process], role: str) -> Process:
    """The first process of the role, else of a role that begins with it. Raises Fatal where there is none."""
    for fits in (role.__eq__, lambda name: name.startswith(role)):
        for process in processes:
            if fits(process.role):
                return process
    known = ", ".join(sorted({p.role for p in processes})) or "none"
    raise Fatal(f"no process has the role {role!r}; roles that run: {known}")


def stop(say: Callable[[str], None]) -> None:
    say("stopping the stack")
    subprocess.run([sys.executable, "-m", "runtime.cli", "down"], timeout=STOP_TIMEOUT_S, check=False)
