"""vla-eval's protocol, as its Connection speaks it (vla-eval 0.8.0, connection.py and protocol/messages.py).

Messages are msgpack maps of type, payload, seq and timestamp. The client speaks first. An observation gets one action,
the next of the chunk; a new one is inferred when the chunk is used up.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import WebSocket
from numpy.typing import NDArray

from ingest_api.peers.arrays import pack_vla_eval, unpack, unreadable
from ingest_api.peers.door import PATIENT_TTL_MS, Door, Line, PeerServices
from ingest_api.peers.robot import matrix_of, sentence
from ingest_api.problems import Problem
from ingest_api.publishing import record
from ingest_api.websocket import Gone
from runtime.publisher import PublisherPort
from schemas.messages import EpisodeEvent, EpisodeKind
from schemas.topics import EPISODES

PROTOCOL_VERSION = 1
_LONGEST_TASK = 500


class VlaEvalRoute:
    def __init__(self, services: PeerServices) -> None:
        self._door = Door("vla-eval", services)
        self._publisher = services.publisher

    async def connect(self, websocket: WebSocket) -> None:
        async with self._door.opened(websocket, ttl_ms=PATIENT_TTL_MS) as line:
            if line is not None:
                with suppress(Gone, TimeoutError):
                    await Evaluation(line, self._publisher).run()


class Evaluation:
    """The messages of one connection."""

    def __init__(self, line: Line, publisher: PublisherPort) -> None:
        self._line = line
        self._publisher = publisher
        self._left: deque[NDArray[np.float32]] = deque()
        self._episode_id = ""
        self._task = ""

    async def run(self) -> None:
        """Until the peer leaves: raises Gone."""
        while True:
            frame = await self._line.receive()
            seq = 0
            try:
                kind, payload, seq = _message(frame)
                await self._take(kind, payload, seq, len(frame))
            except Problem as problem:
                self._left.clear()
                await self._send("error", {"error": sentence(problem)}, seq)
            self._line.answered()

    async def _take(self, kind: str, payload: dict[Any, Any], seq: int, size_bytes: int) -> None:
        match kind:
            case "hello":
                await self._send("hello", self._hello(), seq)
            case "observation":
                await self._send("action", {"actions": await self._action(payload, size_bytes)}, seq)
            case "episode_start":
                await self._start(payload)
            case "episode_end":
                await self._end(payload)
            case "error":
                pass
            case _:
                raise unreadable("`type` is one of hello, episode_start, observation, episode_end, error")

    def _hello(self) -> dict[str, Any]:
        card = self._line.robot.card
        return {
            "harness_version": "vlastream",
            "protocol_version": PROTOCOL_VERSION,
            "model_server": card.model,
            "capabilities": {},
            "observation_params": {
                "send_state": True,
                "send_wrist_image": any("wrist" in camera for camera in card.cameras),
            },
        }

    async def _action(self, payload: dict[Any, Any], size_bytes: int) -> NDArray[np.float32]:
        robot = self._line.robot
        if not self._left:
            if self._task and not any(name in payload for name in ("task_description", "prompt", "instruction")):
                payload = {**payload, "task_description": self._task}
            try:
                self._left.extend(matrix_of(await self._line.ask(payload, size_bytes)))
            except Problem as problem:
                held = robot.held(problem)
                if held is None:
                    raise
                return held
        action = self._left.popleft()
        robot.executed(action)
        return action

    async def _start(self, payload: dict[Any, Any]) -> None:
        self._left.clear()
        self._episode_id, self._task = str(uuid.uuid4()), _task(payload)
        self._line.robot.begin(self._episode_id)
        await self._publish(EpisodeKind.EPISODE_KIND_START)

    async def _end(self, payload: dict[Any, Any]) -> None:
        self._left.clear()
        if not self._episode_id:
            return
        success = payload.get("success", (payload.get("metrics") or {}).get("success"))
        await self._publish(EpisodeKind.EPISODE_KIND_END, success if isinstance(success, bool) else None)
        self._episode_id, self._task = "", ""
        self._line.robot.begin()

    async def _publish(self, kind: EpisodeKind.ValueType, success: bool | None = None) -> None:
        robot, customer_id = self._line.robot, self._line.session.customer_id
        event = EpisodeEvent(
            event_id=str(uuid.uuid4()),
            kind=kind,
            customer_id=customer_id,
            robot_id=robot.robot_id,
            robot_type=robot.robot_type,
            episode_id=self._episode_id,
            task=self._task,
        )
        if success is not None:
            event.success = success
        await record(
            self._publisher,
            EPISODES,
            event,
            key=robot.robot_id,
            event_type="vla.episode.v1",
            event_id=event.event_id,
            customer_id=customer_id,
        )

    async def _send(self, kind: str, payload: dict[str, Any], seq: int) -> None:
        message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
        await self._line.socket.send(pack_vla_eval(message))


def _message(frame: str | bytes) -> tuple[str, dict[Any, Any], int]:
    """Type, payload and seq of a message. Raises Problem 400."""
    if isinstance(frame, str):
        raise unreadable("a message is a binary frame of msgpack")
    found = unpack(frame)
    if not isinstance(found, dict):
        raise unreadable("a message is a map")
    kind, payload, seq = found.get("type"), found.get("payload"), found.get("seq")
    if not isinstance(kind, str) or not isinstance(payload, dict) or not isinstance(seq, int):
        raise unreadable("a message has type, payload and seq")
    return kind, payload, seq


def _task(payload: dict[Any, Any]) -> str:
    """What is to be done, as far as the start of an episode says it."""
    task = payload.get("task")
    if isinstance(task, dict):
        task = next((task[name] for name in ("description", "language", "name") if isinstance(task.get(name), str)), "")
    return task[:_LONGEST_TASK] if isinstance(task, str) and task.isprintable() else ""
