"""A peer's server as a process of its own, started for a measurement and ended after it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from benchmarks.peers.environments import Peer, is_installed, python_of
from runtime.errors import Unavailable
from runtime.stack.layout import free_port

Say = Callable[[str], None]
_START_S = 120.0


class Serving:
    """The peer's server as a process, from entering to leaving; it may load while others are measured."""

    def __init__(self, peer: Peer, policy: str, *, folder: Path, openpi: Path | None, say: Say) -> None:
        self._peer = peer
        self._folder = folder.absolute()
        self._say = say
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._arguments = ["--policy", policy, "--port", str(port)]
        if peer.name == "openpi" and openpi is not None:
            self._arguments += ["--openpi", str(openpi.absolute())]
        self._log = self._folder / f"{peer.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        """Started once; entering it again changes nothing."""
        if self._process is None:
            self._say(f"starting {self._peer.title}; its log is {self._log}")
            command = [str(python_of(self._peer, self._folder)), "-m", self._peer.module, *self._arguments]
            with self._log.open("wb") as output:
                self._process = subprocess.Popen(command, stdout=output, stderr=output)
        return self

    def url(self) -> str:
        """Where it answers, once it does. Raises Unavailable where it does not."""
        assert self._process is not None
        _wait_healthy(self._process, self._url + self._peer.health, self._log)
        return self._url

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _wait_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=2.0, trust_env=False).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    raise Unavailable(f"it does not answer; see {log}")


def missing(peer: Peer, *, folder: Path, openpi: Path | None) -> str:
    """Why a peer cannot be measured; empty if it can."""
    if not is_installed(peer, folder):
        return f"it is not installed in {folder} (`python -m benchmarks.peers setup`)"
    if peer.name == "openpi" and openpi is None:
        return "no --openpi PATH was given"
    return ""
