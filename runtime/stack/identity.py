"""Which process is meant: a process id alone may since belong to another program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import psutil

from runtime.lifecycle import Deadline

#: Systems tell the same start time a little differently after the clock was set.
_TOLERANCE_S = 2.0


@dataclass(frozen=True)
class Identity:
    pid: int
    #: Seconds since the epoch.
    create_time: float

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a process that runs now, or None."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    @classmethod
    def from_json(cls, value: Any) -> Identity:
        return cls(int(value["pid"]), float(value["create_time"]))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def process(self) -> psutil.Process | None:
        """The process if it still runs and is this one."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) <= _TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None


def end_processes(identities: Iterable[Identity], deadline: Deadline) -> int:
    """Ask those that still run to end, wait, and kill those that stay. Returns how many there were."""
    processes = [process for process in (identity.process() for identity in identities) if process is not None]
    for process in processes:
        _signal(process, kill=False)
    _, stay = psutil.wait_procs(processes, timeout=deadline.remaining_s)
    for process in stay:
        _signal(process, kill=True)
    psutil.wait_procs(stay, timeout=5)
    return len(processes)


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        return
