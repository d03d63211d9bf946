"""Many robots over REST from one process: bodies are prepared before the run, so that the client costs little."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import aiohttp

from benchmarks.frames import CAMERAS, ROBOT_TYPE, View, new_request_id
from benchmarks.load import OK, Answer


class RestClients:
    """`send` is a `load.Send`: one kept-alive connection for each request in flight."""

    def __init__(self, api: str, api_key: str, *, model: str, views: Sequence[View], ttl_ms: int) -> None:
        self._url = f"{api}/v1/inference"
        self._headers = {"Authorization": f"Bearer {api_key}", "Content-Type": "application/json"}
        self._bodies = [_body(view, model, ttl_ms) for view in views]
        # Robots and episodes of this run are new ones: no continuity with, and no duplicates of, an earlier run.
        self._run = uuid.uuid4().hex[:8]

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
        # A benchmark's traffic never goes by a proxy of the environment.
        self._http = aiohttp.ClientSession(connector=connector, headers=self._headers, trust_env=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def send(self, robot: int, step: int) -> Answer:
        request_id = new_request_id()
        name = f"{self._run}-{robot}"
        head = f'{{"request_id":"{request_id}","robot_id":"{name}","episode_id":"{name}","step":{step},'.encode()
        body = head + self._bodies[(robot + step) % len(self._bodies)]
        try:
            async with self._http.post(self._url, data=body) as reply:
                text = await reply.read()
                status = reply.status
        except aiohttp.ClientError as error:
            return Answer(request_id, type(error).__name__)
        document = json.loads(text)
        if status != 200:
            return Answer(request_id, str(document.get("code", status)))
        return Answer(request_id, OK, document["timings_ms"], document["batch_size"])


def _body(view: View, model: str, ttl_ms: int) -> bytes:
    """The body of a request from its second member on."""
    return json.dumps(
        {
            "robot_type": ROBOT_TYPE,
            "model": model,
            "instruction": view.instruction,
            "images": [
                {"camera": camera, "data": base64.b64encode(jpeg).decode()}
                for camera, jpeg in zip(CAMERAS, view.jpegs, strict=False)
            ],
            "state": view.state,
            "options": {"ttl_ms": ttl_ms},
        }
    ).encode()[1:]
