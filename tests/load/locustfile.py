"""Robots as load: `locust -f tests/load/locustfile.py --host http://localhost:8000`; `make load` runs two minutes.

Each robot lives in a tabletop world of its own: it sends the frame that it sees, executes the chunk that comes back at
the pace of its control rate, and asks again; an episode ends when the task is done, failed or took too long. One in
twenty users is an operator who watches. A request is a failure unless it brings actions; refusals are told by code.

The key: --api-key, the variable API_KEY, or that of the embedded stack in this folder.
"""

from __future__ import annotations

import base64
import itertools
import json
import time
import uuid
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np
from locust import HttpUser, constant, events, tag, task
from locust.env import Environment

from examples.tabletop.world import TabletopWorld

_STACK_FILE = Path(".vlastream/stack.json")
_ROBOT_TYPE, _MODEL, _CAMERA = "tabletop_arm", "tabletop-pi0", "base"
_TTL_MS = 5000
_LONGEST_EPISODE_STEPS = 40
_CONTROL_RATE_HZ = 10.0
#: A client that is told to wait waits, and sends the same request again so often.
_ATTEMPTS = 3
#: Larger shares of failures make the run fail.
_ACCEPTED_FAIL_RATIO = 0.01

_numbers = itertools.count()


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator] # locust's events have no types
def _arguments(parser: ArgumentParser) -> None:
    named: dict[str, Any] = {"env_var": "API_KEY", "is_secret": True, "default": ""}
    parser.add_argument("--api-key", help="of the customer whose robots these are", **named)


@events.test_start.add_listener  # type: ignore[untyped-decorator] # locust's events have no types
def _needs_key(environment: Environment, **_: Any) -> None:
    if not _key(environment):
        raise SystemExit("no API key: give --api-key or API_KEY, or run beside an embedded stack (`make up`)")


@events.quitting.add_listener  # type: ignore[untyped-decorator] # locust's events have no types
def _judge(environment: Environment, **_: Any) -> None:
    failed = environment.stats.total.fail_ratio
    environment.process_exit_code = (
        1 if failed > _ACCEPTED_FAIL_RATIO or not environment.stats.total.num_requests else 0
    )


def _key(environment: Environment) -> str:
    options = environment.parsed_options
    if options is not None and options.api_key:
        return str(options.api_key)
    try:
        return str(json.loads(_STACK_FILE.read_text())["api_key"])
    except (OSError, ValueError, KeyError):
        return ""


class Robot(HttpUser):
    """One arm, over REST."""

    weight = 19
    wait_time = constant(0)

    def on_start(self) -> None:
        self._number = next(_numbers)
        self._headers = {"Authorization": f"Bearer {_key(self.environment)}"}
        # Another world in each run: the same frame of the same robot would be a duplicate.
        self._world = TabletopWorld(uuid.uuid4().int % 2**32)
        self._begin()

    def _begin(self) -> None:
        self._episode, self._step = uuid.uuid4().hex, 0
        self._world.reset()

    @tag("rest")
    @task
    def ask_and_act(self) -> None:
        actions = self._infer()
        if actions is None:
            time.sleep(1.0)
            return
        for action in actions:
            self._world.step(np.asarray(action))
        self._step += len(actions)
        time.sleep(len(actions) / _CONTROL_RATE_HZ)
        if self._world.success or self._world.failed or self._step >= _LONGEST_EPISODE_STEPS:
            self._begin()

    def _infer(self) -> list[list[float]] | None:
        """The chunk; None for a refusal. A retry goes under the same id: it is answered with the first outcome."""
        jpeg, state = self._world.observe()
        body = {
            "request_id": str(uuid.uuid4()),
            "robot_id": f"load-{self._number}",
            "robot_type": _ROBOT_TYPE,
            "model": _MODEL,
            "instruction": self._world.instruction,
            "images": [{"camera": _CAMERA, "data": base64.b64encode(jpeg).decode()}],
            "state": np.asarray(state, float).tolist(),
            "episode_id": self._episode,
            "step": self._step,
            "options": {"ttl_ms": _TTL_MS},
        }
        for attempt in range(_ATTEMPTS):
            with self.client.post(
                "/v1/inference", json=body, headers=self._headers, name="POST /v1/inference", catch_response=True
            ) as answer:
                if answer.status_code == 200:
                    found: list[list[float]] = answer.json()["actions"]["values"]
                    return found
                code = _code(answer)
                waits = answer.headers.get("Retry-After") if answer.headers else None
                if waits is None or attempt == _ATTEMPTS - 1:
                    answer.failure(code)
                    return None
                # Told to come again: part of the protocol under load, and counted by name.
                answer.request_meta["name"] = f"POST /v1/inference, told to wait: {code}"
                answer.success()
            time.sleep(float(waits))
        return None


class Operator(HttpUser):
    """Looks at what everybody else does."""

    weight = 1
    wait_time = constant(5)

    @task
    def look(self) -> None:
        for path in ("/health", "/v1/monitoring/queue", "/v1/models", "/metrics"):
            self.client.get(path, name=f"GET {path}")


def _code(answer: Any) -> str:
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
