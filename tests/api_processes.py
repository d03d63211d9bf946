"""Real `vlastream api` processes on one broker, database and Valkey, and a responder in the pipeline's place."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from runtime.stack.layout import free_port

ROOT = Path(__file__).resolve().parents[1]


class ApiProcess:
    def __init__(self, environment: Mapping[str, str], instance: int, log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "runtime.cli", "api"],
                env={**os.environ, **environment, "PORT": str(port), "ROLE_INSTANCE": str(instance)},
                stdout=file,
                stderr=file,
                cwd=ROOT,
            )

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the API ended:\n{self.log.read_text()[-3000:]}"
            try:
                if httpx.get(f"{self.url}/readyz", timeout=2, trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"the API did not become ready:\n{self.log.read_text()[-3000:]}")


@contextmanager
def api_processes(environment: Mapping[str, str], folder: Path, count: int) -> Iterator[list[ApiProcess]]:
    """Started, not yet ready; killed at the end."""
    processes = [ApiProcess(environment, instance, folder / f"api-{instance}.log") for instance in range(count)]
    try:
        yield processes
    finally:
        for api in processes:
            api.process.kill()
            api.process.wait()


def vlastream(environment: Mapping[str, str], *arguments: str) -> str:
    """What a command prints, typed at a shell."""
    done = subprocess.run(
        [sys.executable, "-m", "runtime.cli", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
    )
    assert done.returncode == 0, f"vlastream {' '.join(arguments)}: {done.stderr}"
    return done.stdout
