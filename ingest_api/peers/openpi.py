"""openpi's protocol, as its WebsocketClientPolicy speaks it (openpi-client 0.1.2, websocket_client_policy.py).

The server speaks first: a map of metadata. Then one map of actions for each map of an observation. An error is a text
frame, and the end of the connection.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import WebSocket

from ingest_api import websocket as ws
from ingest_api.exchange import Actions
from ingest_api.peers.arrays import unpack, unreadable
from ingest_api.peers.door import Door, Line, PeerServices
from ingest_api.peers.robot import Chunk, matrix_of, sentence
from ingest_api.problems import Problem
from ingest_api.websocket import Gone
from schemas.cards import ModelCard
from schemas.openpi_wire import pack


class OpenpiRoute:
    def __init__(self, services: PeerServices) -> None:
        self._door = Door("openpi", services)
        self._settings = services.settings

    async def connect(self, websocket: WebSocket) -> None:
        async with self._door.opened(websocket, ttl_ms=self._settings.default_ttl_ms) as line:
            if line is not None:
                with suppress(Gone, TimeoutError):
                    await self._talk(line)

    async def _talk(self, line: Line) -> None:
        await line.socket.send(pack(metadata(line.robot.card, line.robot.robot_id)))
        previous_ms: float | None = None
        while True:
            frame = await line.receive()
            started = time.perf_counter()
            try:
                answer = await self._answer(line, frame, previous_ms, started)
            except Problem as problem:
                # As openpi's server does: the client raises what the text says, and connects anew.
                await line.socket.send(sentence(problem))
                await line.socket.close(ws.INTERNAL, f"{problem.code}: see the text frame before")
                return
            await line.socket.send(pack(answer))
            line.answered()
            previous_ms = (time.perf_counter() - started) * 1000

    async def _answer(
        self, line: Line, frame: str | bytes, previous_ms: float | None, started: float
    ) -> dict[str, Any]:
        """Raises Problem."""
        if isinstance(frame, str):
            raise unreadable("an observation is a binary frame of msgpack")
        content = unpack(frame)
        robot = line.robot
        try:
            actions = await line.ask(content, len(frame))
        except Problem as problem:
            held = robot.held(problem)
            if held is None:
                raise
            chunk: Chunk = np.repeat(held[None], robot.card.horizon, axis=0)
            told: dict[str, Any] = {"held": True, "refusal": sentence(problem)}
        else:
            chunk, told = matrix_of(actions), _told(actions)
            robot.executed(chunk[-1])
        timing = {"infer_ms": (time.perf_counter() - started) * 1000}
        if previous_ms is not None:
            timing["prev_total_ms"] = previous_ms
        # `actions` is the one array: ActionChunkBroker slices every array that it finds.
        policy_ms = told.get("timings_ms", {}).get("inference", 0.0)
        return {
            "actions": chunk,
            "policy_timing": {"infer_ms": policy_ms},
            "server_timing": timing,
            "vlastream": told,
        }


def metadata(card: ModelCard, robot_id: str) -> dict[str, Any]:
    """What the server says first."""
    return {
        "server": "vlastream",
        "model": card.model,
        "cameras": list(card.cameras),
        "state_dim": card.state_dim,
        "action_dim": card.action_dim,
        "action_horizon": card.horizon,
        "robot_id": robot_id,
    }


def _told(actions: Actions) -> dict[str, Any]:
    outcome = actions.outcome
    return {
        "held": False,
        "request_id": outcome.request.request_id,
        "safety_score": outcome.chunk.safety.score,
        "modified": outcome.chunk.safety.modified,
        "timings_ms": actions.timings_ms,
    }
