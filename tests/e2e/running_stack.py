"""A running stack as its users see it: addresses, a key, processes that can be killed, requests that are valid."""

from __future__ import annotations

import base64
import functools
import json
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any, LiteralString

import httpx
import numpy as np
import psycopg

from examples.demo.stack_access import fleet_security
from examples.tabletop.world import TabletopWorld
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.stack import Stack
from runtime.stack_file import settings_of

#: For the hashes that stand for ids in the lake; a secret of the stack as others are.
SALT = "salt-of-the-end-to-end-tests"


class RunningStack:
    """Reads stack.json anew at each question: pids change when roles are restarted."""

    def __init__(self, layout: Layout, stack: Stack) -> None:
        self.layout = layout
        self.stack = stack

    @property
    def file(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.layout.stack_file.read_text())
        return content

    @property
    def api(self) -> str:
        return str(self.file["api"])

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.file['api_key']}"}

    @property
    def environment(self) -> dict[str, str]:
        """For a command that is typed beside the stack."""
        return {**os.environ, "STACK_FILE": str(self.layout.stack_file), "ANONYMIZATION_HASH_SALT": SALT}

    @functools.cached_property
    def settings(self) -> Settings:
        values = {**settings_of(self.file), "anonymization_hash_salt": SALT}
        return Settings(_env_file=None, stack_file=self.layout.stack_file, **values)

    def fleet_security(self, fleet: str) -> dict[str, str]:
        """What a robot of a fleet that the stack begins with tells Kafka; nothing where the stack is plain."""
        return fleet_security(self.file, fleet)

    def post(self, body: dict[str, Any], **headers: str) -> httpx.Response:
        """A request; `headers` beside the key."""
        return httpx.post(f"{self.api}/v1/inference", json=body, headers={**self.headers, **headers}, timeout=30)

    def pids(self, role: str) -> list[int]:
        return [process["pid"] for process in self.file["processes"] if process["role"] == role]

    def end(self, role: str, number: signal.Signals) -> None:
        """Send a signal to one process of a role and wait until the supervisor runs another in its place."""
        victim = self.pids(role)[0]
        os.kill(victim, number)
        self.wait_for(lambda: victim not in self.pids(role) and self._ready(role), f"{role} did not come back")

    def _ready(self, role: str) -> bool:
        urls = [process["metrics"] for process in self.file["processes"] if process["role"] == role]
        try:
            return bool(urls) and all(httpx.get(url.replace("/metrics", "/readyz")).status_code == 200 for url in urls)
        except httpx.TransportError:
            return False

    def wait_for(self, condition: Any, what: str, timeout_s: float = 120) -> None:
        """Until the condition holds; `what` is told where it does not come to."""
        end = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < end, what
            time.sleep(0.1)

    def rows(self, query: LiteralString, *values: Any) -> list[tuple[Any, ...]]:
        """What the database says."""
        with psycopg.connect(self.file["database"]) as connection:
            return connection.execute(query, values).fetchall()

    def log_of(self, name: str) -> Path:
        return self.layout.log(name)


def observation(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A valid request body with a real frame of the tabletop; another content for each seed."""
    world = TabletopWorld(seed)
    instruction = world.reset("reach")
    jpeg, state = world.observe()
    body = {
        "request_id": str(uuid.uuid4()),
        "robot_id": f"arm-{seed % 20}",
        "robot_type": "tabletop_arm",
        "model": "tabletop-pi0",
        "instruction": instruction,
        "images": [{"camera": "base", "data": base64.b64encode(jpeg).decode()}],
        "state": np.asarray(state, float).tolist(),
        "options": {"ttl_ms": 10_000},
    }
    return {**body, **changes}
