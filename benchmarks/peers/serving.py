"""A peer's server as a process of its own, started for a measurement and ended after it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from benchmarks.peers.environments import Peer, is_installed, python_of
from runtime.errors import Unavailable
from runtime.stack.layout import free_port

Say = Callable[[str], None]
_START_S = 120.0


@contextmanager
def serving(peer: Peer, policy: str, *, folder: Path, openpi: Path | None, say: Say) -> Iterator[str]:
    """The peer's server as a process. Yields its URL. Raises Unavailable where it does not answer."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    arguments = ["--policy", policy, "--port", str(port)]
    if peer.name == "openpi" and openpi is not None:
        arguments += ["--openpi", str(openpi.absolute())]
    log = folder.absolute() / f"{peer.name}.log"
    say(f"starting {peer.title}; its log is {log}")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [python_of(peer, folder), "-m", peer.module, *arguments], stdout=output, stderr=output
        )
    try:
        _wait_healthy(process, url + peer.health, log)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
