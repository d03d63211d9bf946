"""Tells a running embedded stack how many processes of a role it shall keep, and waits until it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.errors import Fatal
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from runtime.stack.layout import Layout, read_json, write_json
from runtime.stack.roles import answers_ready
from runtime.stack.rolling import runs_beside

_POLL_S = 0.1
#: Roles whose processes share no partitions among them.
_UNSHARED = ("api", "etl")
#: Roles that read accepted topics.
_OF_ACCEPTED = ("gpu", "embedder", "sink parquet")


def scale_role(settings: Settings, role: str, count: int, *, wait_s: float, say: Callable[[str], None] = print) -> None:
    """Have `count` processes of a role, ready to serve; who leaves has drained. Raises Fatal with what to do."""
    stack_file = settings.stack_file
    name = named_role(stack_file, role)
    before = len(processes_of(stack_file, name))
    want(stack_file, name, count)
    deadline = Deadline(wait_s)
    while not _is_done(stack_file, name, count):
        if deadline.passed:
            raise Fatal(f"{name} has not {count} ready processes after {wait_s:.0f} s: see `vlastream ps` and its logs")
        time.sleep(_POLL_S)
    say(f"{name}: {count} ready (before: {before})")
    accepted = name.startswith(_OF_ACCEPTED)
    partitions = settings.kafka_accepted_partitions if accepted else settings.kafka_partitions
    if count > partitions and not name.startswith(_UNSHARED):
        setting = "KAFKA_ACCEPTED_PARTITIONS" if accepted else "KAFKA_PARTITIONS"
        say(f"what {name} reads has {partitions} partitions ({setting}): more processes than that wait idle")
    if name == "api" and count > 1:
        say("each API serves at an address of its own, see `vlastream ps`: nothing spreads clients over them here")


def want(stack_file: Path, role: str, count: int) -> None:
    """Only say it: the stack's supervisor begins within a tick."""
    layout = Layout(stack_file.parent)
    write_json(layout.replicas_file, {**(read_json(layout.replicas_file) or {}), role: count})


def named_role(stack_file: Path, role: str) -> str:
    """The role as the stack calls it; `sink-postgres` is `sink postgres`. Raises Fatal with those that there are."""
    document = read_json(stack_file) if runs_beside(stack_file) else None
    if document is None:
        raise Fatal("no embedded stack runs here: start one with `vlastream up`")
    roles = list(document["replicas"])
    found = [name for name in roles if name.replace(" ", "-") == role.replace(" ", "-")]
    if not found:
        raise Fatal(f"no role {role!r}: there are {', '.join(name.replace(' ', '-') for name in roles)}")
    return str(found[0])


def processes_of(stack_file: Path, role: str) -> list[dict[str, Any]]:
    """Those that run, and those that drain."""
    document = read_json(stack_file) or {"processes": []}
    return [process for process in document["processes"] if process["role"] == role]


def _is_done(stack_file: Path, role: str, count: int) -> bool:
    wanted = (read_json(stack_file) or {}).get("replicas", {}).get(role)
    processes = processes_of(stack_file, role)
    ports = [int(process["metrics"].rsplit(":", 1)[1].split("/")[0]) for process in processes]
    return wanted == count == len(processes) and all(map(answers_ready, ports))
