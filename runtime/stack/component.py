"""What the stack runs: the description of one long-lived process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from runtime.errors import Fatal

#: Takes one sentence for the person who waits.
Say = Callable[[str], None]


@dataclass(frozen=True)
class Command:
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    #: User id to run as; None: that of the stack.
    uid: int | None = None

    def __str__(self) -> str:
        line = " ".join(self.argv)
        return line if len(line) <= 120 else f"{line[:80]} ... {self.argv[-1]}"

    def spawn(
        self, *, log: Path | None, dies_by: signal.Signals, stdin: int = subprocess.DEVNULL, stdout: int | None = None
    ) -> subprocess.Popen[bytes]:
        """Start it in a session of its own; when the calling thread ends, it gets `dies_by`.

        log: where its output goes; None: where our own does.

        The kernel ties that signal to the thread which started the process, not to the program: call it from a
        thread that lives as long as the process shall.
        """
        launcher = [sys.executable, "-I", "-S", str(Path(__file__).with_name("launch.py"))]
        uid = -1 if self.uid is None else self.uid
        with log.open("ab") if log is not None else nullcontext() as output:
            return subprocess.Popen(
                [*launcher, str(os.getpid()), str(int(dies_by)), str(uid), *self.argv],
                stdin=stdin,
                stdout=output if stdout is None else stdout,
                stderr=output,
                env=os.environ | self.env,
                start_new_session=True,
            )

    def run(self, *, log: Path, stdin: bytes = b"", capture: bool = False) -> str:
        """Run it to its end; with `capture` its standard output is returned instead of logged.

        Raises Fatal, with the end of its log, if it fails.
        """
        stdout = subprocess.PIPE if capture else None
        with self.spawn(log=log, dies_by=signal.SIGKILL, stdin=subprocess.PIPE, stdout=stdout) as process:
            output, _ = process.communicate(stdin)
        if process.returncode:
            raise Fatal(f"{self} failed with status {process.returncode}:\n{tail(log)}")
        return (output or b"").decode()


class Component(ABC):
    """One process of the stack. Ports, paths and passwords are fixed when it is made, so restarts keep them."""

    #: Unique in the stack; names the log file.
    name: str
    #: As shown in stack.json.
    role: str
    stop_signal: signal.Signals = signal.SIGTERM
    #: What it gets when the supervisor is gone.
    orphan_signal: signal.Signals = signal.SIGTERM
    metrics_url: str | None = None

    def prepare(self, say: Say) -> None:  # noqa: B027 - most parts need none
        """Make what it needs on disk; does nothing the second time. May take long and says so. Raises Fatal."""

    @abstractmethod
    def command(self) -> Command:
        """What to start; asked anew for every start."""

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it serves now; answers within about a second."""


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log file, for an error message that names the file."""
    try:
        text = log.read_bytes()[-8192:].decode(errors="replace").splitlines()[-lines:]
    except FileNotFoundError:
        text = []
    return "\n".join([*(f"  | {line}" for line in text), f"  (the whole log is in {log})"])
