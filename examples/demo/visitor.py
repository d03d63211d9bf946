"""One robot of the demo that speaks somebody else's protocol, by that project's own client package, unmodified.

    .venv-clients/bin/python -m examples.demo.visitor < settings.json

Runs in the clients' own environment, so it imports nothing of vlastream but the tabletop world. Its settings are one
JSON object on standard input, with the fields of `Visit`. It writes a JSON object a line: {"request": ...} for each
exchange, {"episode": ...} for each episode, as examples/demo/record.py names their fields.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from examples.tabletop.world import TASKS, TabletopWorld

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating]
#: How many actions of a chunk an openpi client executes before it asks again.
OPENPI_HORIZON = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """protocol: openpi, vla-eval or openvla. `seconds`: no episode is begun after them."""

    protocol: str
    api: str
    api_key: str
    robot_id: str
    seed: int
    seconds: float
    episodes: int | None
    control_period_s: float


class Holds(Exception):
    """There is no action for this control step."""


class Speaks(Protocol):
    """A client of some protocol. Each call may block."""

    def begin(self, instruction: str) -> None:
        """An episode begins. Raises Holds."""
        ...

    def act(self, pixels: Pixels, state: Floats, instruction: str) -> Floats:
        """The action (7,) for what is seen. Raises Holds."""
        ...

    def end(self, success: bool) -> None:
        """The episode is over. Raises Holds."""
        ...


class OpenPi:
    """openpi-client: WebsocketClientPolicy under ActionChunkBroker, as openpi's own examples use them."""

    def __init__(self, visit: Visit, note: Callable[[str, float], None]) -> None:
        from openpi_client.action_chunk_broker import ActionChunkBroker
        from openpi_client.websocket_client_policy import WebsocketClientPolicy

        self._connect: Callable[[], Any] = lambda: WebsocketClientPolicy(
            host=f"ws://{_place(visit)}/?robot_id={visit.robot_id}", port=None, api_key=visit.api_key
        )
        self._policy: Any = None
        self._note = note
        self._broker = ActionChunkBroker(self, action_horizon=OPENPI_HORIZON)

    def infer(self, seen: dict[str, Any]) -> dict[str, Any]:
        """The inner policy of the broker."""
        started = time.monotonic()
        try:
            if self._policy is None:
                self._policy = self._connect()
            found: dict[str, Any] = self._policy.infer(seen)
        except Exception as error:
            # This client does not come back by itself.
            self._policy = None
            raise _holds(error, started, self._note) from error
        self._note("actions", started)
        return {"actions": found["actions"]}

    def reset(self) -> None: ...

    def begin(self, instruction: str) -> None:
        self._broker.reset()

    def act(self, pixels: Pixels, state: Floats, instruction: str) -> Floats:
        seen = {"observation/image": pixels, "observation/state": state, "prompt": instruction}
        return np.asarray(self._broker.infer(seen)["actions"])

    def end(self, success: bool) -> None: ...


class VlaEval:
    """vla-eval's Connection: an action for each observation."""

    def __init__(self, visit: Visit, note: Callable[[str, float], None]) -> None:
        from vla_eval.connection import Connection

        self._loop = asyncio.new_event_loop()
        # This client sets no header, but makes one of what stands before the host.
        url = f"ws://robot:{visit.api_key}@{_place(visit)}/v1/vla-eval?robot_id={visit.robot_id}"
        self._connection = Connection(url, timeout=10.0, max_retries=3, backoff_base=1.2)
        self._note = note

    def begin(self, instruction: str) -> None:
        async def start() -> None:
            if not self._connection.is_connected:
                await self._connection.connect()
            await self._connection.start_episode({"task": instruction})

        self._run(start())

    def act(self, pixels: Pixels, state: Floats, instruction: str) -> Floats:
        started = time.monotonic()
        seen = {"images": {"agentview": pixels}, "states": state, "task_description": instruction}
        found = self._run(self._connection.act(seen))
        self._note("actions", started)
        return np.asarray(found["actions"])

    def end(self, success: bool) -> None:
        self._run(self._connection.end_episode({"success": success}))

    def _run(self, exchange: Coroutine[Any, Any, Any]) -> Any:
        """Raises Holds; the connection comes back by itself with the next exchange."""
        started = time.monotonic()
        try:
            return self._loop.run_until_complete(exchange)
        except Exception as error:
            raise _holds(error, started, self._note) from error


class OpenVla:
    """requests and json-numpy, as OpenVLA's deployment script tells its users."""

    def __init__(self, visit: Visit, note: Callable[[str, float], None]) -> None:
        import json_numpy
        import requests

        json_numpy.patch()
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers["Authorization"] = f"Bearer {visit.api_key}"
        self._url = f"{visit.api}/act?robot_id={visit.robot_id}"
        self._note = note

    def begin(self, instruction: str) -> None: ...

    def act(self, pixels: Pixels, state: Floats, instruction: str) -> Floats:
        started = time.monotonic()
        # json-numpy writes arrays, which the type of `json` does not know of.
        seen: Any = {"image": pixels, "instruction": instruction, "state": state}
        try:
            reply = self._session.post(self._url, json=seen, timeout=10)
            if reply.status_code != 200:
                raise RuntimeError(f"{reply.status_code} {reply.text[:200]}")
            action = np.asarray(reply.json(), dtype=np.float32)
        except Exception as error:
            raise _holds(error, started, self._note) from error
        self._note("actions", started)
        return action

    def end(self, success: bool) -> None: ...


CLIENTS: dict[str, Callable[[Visit, Callable[[str, float], None]], Speaks]] = {
    "openpi": OpenPi,
    "vla-eval": VlaEval,
    "openvla": OpenVla,
}


def _holds(error: Exception, started: float, note: Callable[[str, float], None]) -> Holds:
    note(f"error: {type(error).__name__}", started)
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return Holds(str(error))


def _place(visit: Visit) -> str:
    """HOST:PORT of the API."""
    return visit.api.partition("://")[2]


def _say(**content: Any) -> None:
    print(json.dumps(content), flush=True)


def work(visit: Visit) -> None:
    """Episode after episode, one task after the other."""

    def note(outcome: str, started: float) -> None:
        _say(request={"outcome": outcome, "round_trip_ms": (time.monotonic() - started) * 1000})

    client = CLIENTS[visit.protocol](visit, note)
    world = TabletopWorld(visit.seed)
    end_s = time.monotonic() + visit.seconds
    number = 0
    while time.monotonic() < end_s and (visit.episodes is None or number < visit.episodes):
        task = TASKS[number % len(TASKS)]
        number += 1
        _say(episode=episode(client, world, task, visit.control_period_s))


def episode(client: Speaks, world: TabletopWorld, task: str, period_s: float) -> dict[str, Any]:
    instruction = world.reset(task)
    _say(begin={"task": task, "instruction": instruction})
    moved = held = 0
    with suppress(Holds):
        client.begin(instruction)
    while not (world.success or world.failed) and held < 100:
        started = time.monotonic()
        try:
            world.step(client.act(world.frame(), world.state(), instruction))
            moved += 1
        except Holds:
            held += 1
        time.sleep(max(period_s - (time.monotonic() - started), 0.0))
    with suppress(Holds):
        client.end(world.success)
    end = "success" if world.success else "failure"
    return {"task": task, "instruction": instruction, "end": end, "control_steps": moved, "held_steps": held}


if __name__ == "__main__":
    work(Visit(**json.load(sys.stdin)))
