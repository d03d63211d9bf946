"""A server of `/v1/stream` (docs/protocols.md) that answers as scripted, drops connections, and stops."""

from __future__ import annotations

import asyncio
import http
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import orjson
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ingest_api.answers import chunk_document, rejection_problem
from ingest_api.request_body import InferenceBody, build_request, parse_body
from schemas.messages import InferenceRequest, Outcome, StreamAnswer

KEY = "key-1"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a service says to a request; `recorded` of a rejection: it is the request's outcome."""

    outcome: Outcome
    replayed: bool = False
    expired: bool = False
    recorded: bool = True


#: None: nothing comes, for now.
Answer = Callable[[InferenceRequest], Reply | None]


@dataclass
class StreamServer:
    """Use as `async with`. Everything that clients did stands in `asked`, `resumed` and `sockets`, in order."""

    answer: Answer
    in_flight: int = 16
    frame_bytes: int = 4 * 2**20
    resume_ids: int = 64
    #: HTTP status, headers and body in the place of an upgrade; None: everybody with the key comes in.
    turned_away: tuple[int, dict[str, str], bytes] | None = None
    #: What this process still knows after a drop; others are `unknown`.
    remembers: bool = True
    asked: list[InferenceRequest] = field(default_factory=list)
    resumed: list[list[str]] = field(default_factory=list)
    sockets: list[ServerConnection] = field(default_factory=list)
    upgrades: int = 0
    _kinds: dict[str, bool] = field(default_factory=dict)
    _known: dict[str, Reply | None] = field(default_factory=dict)
    _server: Server | None = None
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, on the port of before if there was one."""
        self._server = await serve(
            self._serve, "127.0.0.1", self.port, process_request=self._upgrade, compression=None, close_timeout=0.5
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def drop(self) -> None:
        """Cut every connection as a network does: without a word."""
        for socket in self.sockets:
            socket.transport.abort()

    async def say(self, content: dict[str, Any]) -> None:
        await self.sockets[-1].send(json.dumps(content))

    async def decide(self, request_id: str, reply: Reply) -> None:
        """The answer to a request for which nothing came before, on the newest connection."""
        self._known[request_id] = reply
        await self._reply(self.sockets[-1], request_id, reply)

    def _upgrade(self, connection: ServerConnection, request: Request) -> Response | None:
        self.upgrades += 1
        if self.turned_away is not None:
            status, headers, body = self.turned_away
        elif request.path != "/v1/stream":
            status, headers, body = 404, {}, b"{}"
        elif request.headers.get("authorization") != f"Bearer {KEY}":
            problem = {"status": 401, "code": "unauthenticated", "detail": "this key is not known"}
            status, headers, body = 401, {}, json.dumps(problem).encode()
        else:
            return None
        response = connection.respond(http.HTTPStatus(status), body.decode())
        response.headers.update(headers)
        return response

    async def _serve(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        limits = {"in_flight": self.in_flight, "frame_bytes": self.frame_bytes, "resume_ids": self.resume_ids}
        welcome = {"type": "welcome", "protocol": "vlastream.v1", "session_id": str(uuid.uuid4()), "limits": limits}
        try:
            await socket.send(json.dumps(welcome))
            async for content in socket:
                await self._take(socket, content)
        except ConnectionClosed:
            pass

    async def _take(self, socket: ServerConnection, content: str | bytes) -> None:
        if isinstance(content, bytes):
            request = InferenceRequest.FromString(content)
        else:
            found = json.loads(content)
            if found["type"] == "resume":
                await self._resume(socket, found["request_ids"])
                return
            assert found.pop("type") == "infer"
            request = message_of(orjson.dumps(found))
        request_id = request.request_id
        self.asked.append(request)
        self._kinds[request_id] = isinstance(content, bytes)
        self._known[request_id] = self.answer(request)
        await self._reply(socket, request_id, self._known[request_id])

    async def _resume(self, socket: ServerConnection, request_ids: list[str]) -> None:
        assert len(request_ids) <= self.resume_ids
        self.resumed.append(request_ids)
        known = [i for i in request_ids if self.remembers and i in self._known]
        pending = [i for i in known if self._known[i] is None]
        answered = [i for i in known if i not in pending]
        unknown = [i for i in request_ids if i not in known]
        content = {"type": "resumed", "pending": pending, "answered": answered, "unknown": unknown}
        await socket.send(json.dumps(content))
        for request_id in answered:
            await self._reply(socket, request_id, self._known[request_id])

    async def _reply(self, socket: ServerConnection, request_id: str, reply: Reply | None) -> None:
        if reply is not None:
            write = _protobuf if self._kinds[request_id] else _json
            await socket.send(write(request_id, reply))


def message_of(body: bytes) -> InferenceRequest:
    """The message of a JSON request, as the API builds it."""
    found = parse_body(body, InferenceBody)
    return build_request(
        found, request_id=found.request_id or "", model=found.model or "", first_camera="base", default_ttl_ms=2000
    )


def json_of(request_id: str, reply: Reply) -> tuple[int, dict[str, Any], float]:
    """Status, body and Retry-After of REST's answer, by the API's own functions."""
    if reply.outcome.WhichOneof("kind") == "chunk":
        found = chunk_document(reply.outcome, timings={"total": 1.0}, replayed=reply.replayed, expired=reply.expired)
        return 200, orjson.loads(orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)), 0.0
    problem = rejection_problem(reply.outcome, replayed=reply.replayed, timings={})
    document = orjson.loads(bytes(problem.response(request_id).body))
    return problem.status, {**document, "recorded": reply.recorded}, problem.retry_after_s


def _json(request_id: str, reply: Reply) -> str:
    status, body, retry_after_s = json_of(request_id, reply)
    if status == 200:
        return json.dumps({"type": "chunk", **body})
    waiting = {"retry_after_s": retry_after_s} if retry_after_s else {}
    return json.dumps({"type": "error", "request_id": request_id, "problem": body, **waiting})


def _protobuf(request_id: str, reply: Reply) -> bytes:
    return StreamAnswer(
        request_id=request_id,
        outcome=reply.outcome,
        replayed=reply.replayed,
        expired=reply.expired,
        recorded=reply.recorded,
        total_ms=1.0,
    ).SerializeToString()


async def until(condition: Callable[[], bool]) -> None:
    """Until something has happened in this event loop; fails after 20 s."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 # many things are waited for, none of which knows of an Event
            await asyncio.sleep(0.005)
