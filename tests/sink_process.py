"""Roles as processes of their own, for tests that end them in every way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from runtime.stack.layout import free_port

ROOT = Path(__file__).resolve().parents[1]


class Role:
    """One sink, or the role that `arguments` of the command line name, as a process of its own."""

    def __init__(self, sink: str, environment: Mapping[str, str], log: Path, arguments: Sequence[str] = ()) -> None:
        self._arguments = arguments or ("sink", sink)
        self._log = log
        self._port = free_port()
        self.metrics_url = f"http://127.0.0.1:{self._port}/metrics"
        self._environment = {**os.environ, **environment, "METRICS_PORT": str(self._port), "PYTHONPATH": str(ROOT)}
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "runtime.cli", *self._arguments]
            return subprocess.Popen(command, env=self._environment, cwd=self._log.parent, stdout=log, stderr=log)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self._process.poll() is None, self._log.read_text()
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=2) as answer:
                    return bool(json.load(answer)["status"] == "ready")
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False

        wait_for(ready)

    def wait_until(self, seconds: float) -> None:
        """Let it work for so long, as long as it lives."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process = self._spawn()

    def freeze(self) -> None:
        """It stops where it is, and will not notice that its group has given its partitions away."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """Its exit status; it is gone in any case."""
        self._process.send_signal(signal.SIGTERM)
        return ended(self._process)

    def restart(self) -> None:
        assert self.stop() == 0, self._log.read_text()
        self._process = self._spawn()


def ended(process: subprocess.Popen[bytes]) -> int:
    """Exit status of a process that was told to end; it is gone in any case."""
    try:
        return process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end
        pause.wait(0.05)
