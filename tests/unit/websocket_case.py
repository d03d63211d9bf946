"""The API behind its own server on a free port, in the test's event loop, and WebSocket clients of it."""

from __future__ import annotations

import asyncio
import json
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from ingest_api.replies import Reply
from ingest_api.server import ApiServer, uvicorn_config
from runtime.settings import Settings
from schemas.messages import InferenceRequest
from tests.unit.api_case import Api, body, chunk_outcome
from tests.unit.api_stand_ins import KEY

_PATIENCE_S = 20


class Serving:
    def __init__(self, api: Api, server: ApiServer, port: int, task: asyncio.Task[None]) -> None:
        self.api = api
        self.server = server
        self.url = f"ws://127.0.0.1:{port}"
        self.http = f"http://127.0.0.1:{port}"
        self.task = task

    def connect(
        self,
        path: str = "/v1/stream",
        key: str | None = KEY,
        additional: dict[str, str] | None = None,
        **options: Any,
    ) -> connect:
        """additional: the headers in place of those with the key."""
        bearer = {"Authorization": f"Bearer {key}"} if key is not None else {}
        headers = bearer if additional is None else additional
        return connect(self.url + path, additional_headers=headers, max_size=None, compression=None, **options)

    async def stop(self) -> None:
        """As a signal would."""
        self.server.should_exit = True


@asynccontextmanager
async def serving(api: Api) -> AsyncIterator[Serving]:
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn_config(api.settings, api.app, api.metrics)
    server = ApiServer(config, api.sessions)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield Serving(api, server, listener.getsockname()[1], task)
    finally:
        server.should_exit = True
        for future in api.gateway.futures:
            future.cancel()
        await asyncio.wait_for(task, _PATIENCE_S)
        listener.close()


def small_settings(**changes: Any) -> Settings:
    return Settings(_env_file=None, database_url="postgresql://x", shutdown_timeout_s=2, **changes)


async def heard(socket: ClientConnection) -> dict[str, Any]:
    """The next JSON frame."""
    frame = await asyncio.wait_for(socket.recv(), _PATIENCE_S)
    assert isinstance(frame, str), frame
    found: dict[str, Any] = json.loads(frame)
    return found


async def heard_bytes(socket: ClientConnection) -> bytes:
    frame = await asyncio.wait_for(socket.recv(), _PATIENCE_S)
    assert isinstance(frame, bytes), frame
    return frame


async def closed_with(socket: ClientConnection) -> int | None:
    """The close code, once the server has closed."""
    await asyncio.wait_for(socket.wait_closed(), _PATIENCE_S)
    return socket.close_code


def infer(request_id: str | None = None, **changes: Any) -> dict[str, Any]:
    return {"type": "infer", "request_id": request_id or str(uuid.uuid4()), **body(**changes)}


def acts(request: InferenceRequest) -> Reply:
    return Reply("c", chunk_outcome(request).SerializeToString())


async def until(condition: Any) -> None:
    """Wait for something that becomes true in this event loop."""
    async with asyncio.timeout(_PATIENCE_S):
        while not condition():  # noqa: ASYNC110 # many things are waited for, none of which knows of an Event
            await asyncio.sleep(0.005)
