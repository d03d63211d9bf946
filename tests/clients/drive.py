"""Plays the tabletop with a client package of another project, unmodified: `drive.py PROTOCOL API_URL KEY [SEED]`.

Run by the interpreter of .venv-clients. Writes one line of JSON: success, steps, and whom the server took it for.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import numpy as np

from examples.tabletop.world import TabletopWorld

#: Steps of a chunk that are executed before the next one is asked for.
EXECUTED = 4
_TTL_MS = 20_000


def openpi(url: str, key: str, world: TabletopWorld) -> str:
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    host = url.replace("http://", "ws://")
    policy = WebsocketClientPolicy(host=f"{host}/?ttl_ms={_TTL_MS}&robot_id=openpi-arm", api_key=key)
    broker = ActionChunkBroker(policy, action_horizon=EXECUTED)
    while not (world.success or world.failed):
        seen = {"observation/image": world.frame(), "observation/state": world.state(), "prompt": world.instruction}
        world.step(broker.infer(seen)["actions"])
    return str(policy.get_server_metadata()["model"])


def vla_eval(url: str, key: str, world: TabletopWorld) -> str:
    from vla_eval.connection import Connection

    async def play() -> str:
        address = url.replace("http://", f"ws://key:{key}@")
        async with Connection(f"{address}/v1/vla-eval/tabletop-pi0?robot_id=vla-eval-arm") as connection:
            await connection.start_episode({"task": {"name": world.instruction}})
            while not (world.success or world.failed):
                seen = {"images": {"agentview": world.frame()}, "states": world.state()}
                action = await connection.act({**seen, "task_description": world.instruction})
                world.step(action["actions"])
            await connection.end_episode({"success": world.success})
            return str(connection.server_info["model_server"])

    return asyncio.run(play())


def openvla(url: str, key: str, world: TabletopWorld) -> str:
    import json_numpy
    import requests

    json_numpy.patch()
    address = f"{url}/act?ttl_ms={_TTL_MS}&robot_id=openvla-arm&on_refusal=hold"
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {key}"
        while not (world.success or world.failed):
            seen: dict[str, Any] = {"image": world.frame(), "instruction": world.instruction, "state": world.state()}
            doubled = world.steps % 2 == 1
            answer = session.post(address, json={"encoded": json_numpy.dumps(seen)} if doubled else seen, timeout=60)
            answer.raise_for_status()
            action = json_numpy.loads(answer.json()) if doubled else answer.json()
            assert isinstance(action, np.ndarray), action
            assert action.shape == (7,), action.shape
            world.step(action)
    return "openvla"


def main() -> None:
    protocol, url, key = sys.argv[1:4]
    world = TabletopWorld(int(sys.argv[4]) if len(sys.argv) > 4 else 0)
    world.reset("reach")
    server = {"openpi": openpi, "vla-eval": vla_eval, "openvla": openvla}[protocol](url, key, world)
    sys.stdout.write(json.dumps({"success": world.success, "steps": world.steps, "server": server}) + "\n")


if __name__ == "__main__":
    main()
