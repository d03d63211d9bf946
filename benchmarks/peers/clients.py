"""Clients of the peers' wires: each sends the picture as that peer's own client would."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgpack
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.frames import View
from benchmarks.load import OK, Answer
from benchmarks.peers.policy_host import CAMERA


class PeerClients:
    """`send` is a `load.Send`; a robot is a connection, opened before its first observation."""

    def __init__(self, url: str, views: Sequence[View]) -> None:
        self._url = url
        self._views = views

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        self._http = aiohttp.ClientSession(connector=connector, trust_env=False)
        self._sockets: dict[int, aiohttp.ClientWebSocketResponse] = {}
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for socket in self._sockets.values():
            await socket.close()
        await self._http.close()

    async def send(self, robot: int, step: int) -> Answer:
        try:
            return Answer("", await self._exchange(robot, step))
        except aiohttp.ClientError as error:
            return Answer("", type(error).__name__)

    async def _exchange(self, robot: int, step: int) -> str:
        """Code of the answer."""
        raise NotImplementedError

    async def _socket(self, robot: int) -> aiohttp.ClientWebSocketResponse:
        socket = self._sockets.get(robot)
        if socket is None or socket.closed:
            socket = self._sockets[robot] = await self._http.ws_connect(self._url, max_msg_size=0, heartbeat=None)
            await self._greet(socket)
        return socket

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        raise NotImplementedError


class OpenpiClients(PeerClients):
    """Raw uint8 pixels in msgpack, keys of the arrays in bytes."""

    def __init__(self, url: str, views: Sequence[View]) -> None:
        super().__init__(url.replace("http", "ws", 1), views)
        self._packed = [msgpack.packb(_openpi_observation(view)) for view in views]

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        await socket.receive_bytes()

    async def _exchange(self, robot: int, step: int) -> str:
        socket = await self._socket(robot)
        await socket.send_bytes(self._packed[(robot + step) % len(self._packed)])
        message = await socket.receive()
        if message.type is not aiohttp.WSMsgType.BINARY:
            return "error"
        return OK if b"actions" in message.data else "error"


class VlaEvalClients(PeerClients):
    """Raw uint8 pixels in msgpack: the fastest of its image formats for the server."""

    def __init__(self, url: str, views: Sequence[View]) -> None:
        super().__init__(url.replace("http", "ws", 1), views)
        self._payloads = [_vla_eval_observation(view) for view in views]

    async def _greet(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        hello = {"harness_version": "", "protocol_version": 1}
        await socket.send_bytes(_vla_eval_message("hello", hello, 0))
        await socket.receive_bytes()
        await socket.send_bytes(_vla_eval_message("episode_start", {"task": {"name": "benchmark"}}, 1))

    async def _exchange(self, robot: int, step: int) -> str:
        socket = await self._socket(robot)
        payload = self._payloads[(robot + step) % len(self._payloads)]
        await socket.send_bytes(_vla_eval_message("observation", payload, step + 2))
        reply = msgpack.unpackb(await socket.receive_bytes(), raw=False)
        fits = reply["type"] == "action" and reply["seq"] == step + 2
        return OK if fits else str(reply["payload"].get("error", reply["type"]))[:80]


class RayClients(PeerClients):
    """JSON with the JPEG in base64, as over our own REST."""

    def __init__(self, url: str, views: Sequence[View]) -> None:
        super().__init__(url, views)
        self._bodies = [
            json.dumps(
                {
                    "instruction": view.instruction,
                    "image": base64.b64encode(view.jpegs[0]).decode(),
                    "state": view.state,
                }
            ).encode()
            for view in views
        ]

    async def _exchange(self, robot: int, step: int) -> str:
        body = self._bodies[(robot + step) % len(self._bodies)]
        async with self._http.post(self._url, data=body, headers={"Content-Type": "application/json"}) as reply:
            text = await reply.read()
            return OK if reply.status == 200 and b"actions" in text else str(reply.status)


CLIENTS = {"openpi": OpenpiClients, "vla-eval": VlaEvalClients, "ray": RayClients}


def pixels(jpeg: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _openpi_observation(view: View) -> dict[str, Any]:
    def packed(array: NDArray[Any]) -> dict[bytes, Any]:
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": array.shape}

    return {
        "observation/image": packed(pixels(view.jpegs[0])),
        "observation/state": packed(np.asarray(view.state, np.float32)),
        "prompt": view.instruction,
    }


def _vla_eval_observation(view: View) -> dict[str, Any]:
    image = pixels(view.jpegs[0])
    array = {"__ndarray__": True, "data": image.tobytes(), "dtype": image.dtype.str, "shape": list(image.shape)}
    return {"images": {CAMERA: array}, "task_description": view.instruction, "states": list(view.state)}


def _vla_eval_message(kind: str, payload: dict[str, Any], seq: int) -> bytes:
    message = {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}
    return bytes(msgpack.packb(message, use_bin_type=True))
