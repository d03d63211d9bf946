"""Child processes that are kept running: started again with back-off when they end, ended together in order."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

from runtime.lifecycle import Deadline
from runtime.stack.component import Command

log = logging.getLogger(__name__)

_TICK_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class BackOff:
    """How long to wait before a process is started again: doubling, from anew once it has lived long enough."""

    first_s: float
    longest_s: float
    stable_after_s: float

    def delay_s(self, previous_s: float | None, lived_s: float) -> float:
        if previous_s is None or lived_s >= self.stable_after_s:
            return self.first_s
        return min(max(previous_s * 2, self.first_s), self.longest_s)


@dataclass
class _Child:
    name: str
    command: Command
    process: subprocess.Popen[bytes] | None = None
    started_at_s: float = 0.0
    restart_at_s: float = 0.0
    delay_s: float | None = None


class Children:
    """Belongs to one thread: all its methods are called there, and its children get SIGTERM when that thread ends.

    They write to our own output. back_off: for an exit status. on_exit: name, status and seconds until the next start.
    """

    def __init__(
        self,
        commands: Sequence[tuple[str, Command]],
        *,
        back_off: Callable[[int], BackOff],
        on_exit: Callable[[str, int, float], None] = lambda name, status, delay_s: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._children = [_Child(name, command) for name, command in commands]
        self._back_off = back_off
        self._on_exit = on_exit
        self._clock = clock

    @property
    def running(self) -> dict[str, int]:
        """Name -> process id of those that run now."""
        return {child.name: child.process.pid for child in self._children if child.process is not None}

    def tick(self) -> None:
        """Notice who ended, and start whose time has come; at first, everybody."""
        now = self._clock()
        for child in self._children:
            if child.process is not None:
                status = child.process.poll()
                if status is not None:
                    self._ended(child, status, now)
            elif now >= child.restart_at_s:
                child.process = child.command.spawn(log=None, dies_by=signal.SIGTERM)
                child.started_at_s = now

    def stop(self, deadline: Deadline, at_once: Event) -> bool:
        """SIGTERM to all, so that each drains; SIGKILL to who has not ended in time. Whether none was killed."""
        processes = [(child.name, child.process) for child in self._children if child.process is not None]
        for _, process in processes:
            process.send_signal(signal.SIGTERM)
        clean = True
        while any(process.poll() is None for _, process in processes):
            if deadline.passed or at_once.is_set():
                clean = False
                for name, process in processes:
                    if process.poll() is None:
                        log.warning("killing %s, which did not end in time", name, extra={"action": "kill"})
                        process.kill()
                        process.wait()
            at_once.wait(_TICK_S)
        for child in self._children:
            child.process = None
        return clean

    def _ended(self, child: _Child, status: int, now: float) -> None:
        lived_s = now - child.started_at_s
        child.process = None
        child.delay_s = self._back_off(status).delay_s(child.delay_s, lived_s)
        child.restart_at_s = now + child.delay_s
        self._on_exit(child.name, status, child.delay_s)
