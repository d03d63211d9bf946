"""Robots as load: `locust -f tests/load/locustfile.py --host http://localhost:8000`; `make load` runs two minutes.

Each robot lives in a tabletop world of its own: it sends the frame that it sees, executes the chunk that comes back at
the pace of its control rate, and asks again. Half of them ask over REST, half keep a WebSocket (`--tags rest` or
`--tags websocket` for one kind); one user in twenty is an operator who watches. A request is a failure unless it
brings actions; refusals are told by code.

The key: --api-key, the variable API_KEY, or that of the embedded stack in this folder.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser
from typing import Any

from locust import HttpUser, constant, events, tag, task
from locust.env import Environment

from tests.load.arm import CONTROL_RATE_HZ, Arm
from tests.load.key import add_arguments, key_of
from tests.load.stream_robot import StreamRobot

__all__ = ["Operator", "Robot", "StreamRobot"]

#: A client that is told to wait waits, and sends the same request again so often.
_ATTEMPTS = 3
#: Larger shares of failures make the run fail.
_ACCEPTED_FAIL_RATIO = 0.01


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator] # locust's events have no types
def _arguments(parser: ArgumentParser) -> None:
    add_arguments(parser)


@events.test_start.add_listener  # type: ignore[untyped-decorator] # locust's events have no types
def _needs_key(environment: Environment, **_: Any) -> None:
    if not key_of(environment):
        raise SystemExit("no API key: give --api-key or API_KEY, or run beside an embedded stack (`make up`)")


@events.quitting.add_listener  # type: ignore[untyped-decorator] # locust's events have no types
def _judge(environment: Environment, **_: Any) -> None:
    failed = environment.stats.total.fail_ratio
    environment.process_exit_code = (
        1 if failed > _ACCEPTED_FAIL_RATIO or not environment.stats.total.num_requests else 0
    )


class Robot(HttpUser):
    """One arm, over REST."""

    weight = 19
    wait_time = constant(0)

    def on_start(self) -> None:
        self._arm = Arm()
        self._headers = {"Authorization": f"Bearer {key_of(self.environment)}"}

    @tag("rest")
    @task
    def ask_and_act(self) -> None:
        actions = self._infer()
        if actions is None:
            self._arm.hold()
            self._arm.begin_if_done()
            time.sleep(1.0)
            return
        for action in actions:
            self._arm.act(action)
        time.sleep(len(actions) / CONTROL_RATE_HZ)
        self._arm.begin_if_done()

    def _infer(self) -> list[list[float]] | None:
        """The chunk; None for a refusal. A retry goes under the same id: it is answered with the first outcome."""
        body = self._arm.body()
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

    weight = 2
    wait_time = constant(5)

    @tag("rest", "websocket")
    @task
    def look(self) -> None:
        for path in ("/health", "/v1/monitoring/queue", "/v1/models", "/metrics"):
            self.client.get(path, name=f"GET {path}")


def _code(answer: Any) -> str:
    try:
        return str(answer.json()["code"])
    except (ValueError, KeyError, TypeError):
        return f"status {answer.status_code}"
