"""What the API adds to every answer, and whom it does not wait for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketState

from ingest_api.http_protocol import MOST_HEAD_BYTES, Room, descriptors_for, protocol_with
from ingest_api.websocket import AbortingProtocol, Gone, Socket
from runtime.settings import Settings
from tests.unit.api_case import Api, sandbox
from tests.unit.api_stand_ins import KEY
from tests.unit.test_api_inference import assert_problem
from tests.unit.websocket_case import until


async def test_every_answer_tells_browsers_to_be_strict() -> None:
    api = Api()
    async with api.client() as client:
        for path in ("/", "/v1/models", "/nothing", "/metrics"):
            headers = (await client.get(path)).headers
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "DENY"
            assert "default-src 'none'" in headers["content-security-policy"]
            assert "server" not in headers
        assert (await client.get("/v1/models")).headers["cache-control"] == "no-store"
        assert "content-security-policy" not in (await client.get("/docs")).headers


@pytest.mark.parametrize(("host", "status"), [
    ("api.example.org", 200), ("API.example.org:8000", 200), ("a.robots.example.org", 200),
    ("evil.org", 400), ("example.org", 400), ("robots.example.org.evil.org", 400), ("", 400),
])  # fmt: skip
async def test_only_names_of_its_own_are_answered(host: str, status: int) -> None:
    api = Api(settings=sandbox_with(allowed_hosts=("api.example.org", "*.robots.example.org")))
    async with api.client() as client:
        assert (await client.get("/v1/models", headers={"host": host})).status_code == status
        assert (await client.get("/livez", headers={"host": host})).status_code == 200, "a probe asks by address"


@pytest.mark.parametrize("name", ["host", "authorization"])
async def test_two_names_or_two_keys_are_refused(name: str) -> None:
    """Of which a proxy in front may have gone by the other one."""
    values = {"host": "api.example.org", "authorization": f"Bearer {KEY}"}
    twice = [*values.items(), (name, "evil" if name == "host" else "Bearer evil")]
    for headers in (twice, list(reversed(twice))):
        async with Api().client(None) as client:
            assert_problem(await client.get("/v1/inference/x", headers=headers), 400, "malformed")


async def test_a_page_may_call_only_from_a_listed_origin() -> None:
    api = Api(settings=sandbox_with(cors_origins=("https://ui.example.org",)))
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    async with api.client(None) as client:
        listed = await client.options("/v1/inference", headers={"origin": "https://ui.example.org", **ask})
        other = await client.options("/v1/inference", headers={"origin": "https://evil.org", **ask})
    assert listed.headers["access-control-allow-origin"] == "https://ui.example.org"
    assert "access-control-allow-credentials" not in listed.headers
    assert other.status_code == 400
    assert "access-control-allow-origin" not in other.headers


async def test_whatever_is_served_to_get_answers_head_without_a_body() -> None:
    async with served(60) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        for path, status in (
            ("/", 200),
            ("/livez", 200),
            ("/v1/models", 200),
            ("/nothing", 404),
            ("/v1/inference", 405),
        ):
            answer = await client.head(path)
            assert (answer.status_code, answer.content) == (status, b""), path
            assert int(answer.headers["content-length"]) > 0, "that of the answer to GET"
    async with Api().client(None) as client:
        assert (await client.head("/v1/keys")).status_code == 401


async def test_by_default_no_page_may_call() -> None:
    async with Api().client() as client:
        answer = await client.get("/v1/models", headers={"origin": "https://ui.example.org"})
    assert "access-control-allow-origin" not in answer.headers


async def test_metrics_can_be_switched_off() -> None:
    async with Api(settings=sandbox_with(enable_prometheus=False)).client() as client:
        for path in ("/metrics", "/metrics/federate"):
            assert_problem(await client.get(path), 404, "not_found")


async def test_a_body_that_does_not_come_is_given_up() -> None:
    api = Api(settings=sandbox_with(client_timeout_s=0.05))
    never = asyncio.Event()

    async def body() -> AsyncIterator[bytes]:
        yield b'{"robot_id":'
        await never.wait()

    async with api.client() as client:
        answer = await client.post("/v1/inference", content=body())
    assert_problem(answer, 408, "slow_client")
    assert answer.headers["connection"] == "close"
    assert api.count("vla_requests_in_flight") == 0


@contextlib.asynccontextmanager
async def served(
    head_timeout_s: float, api: Api | None = None, *, room: int = 100, closed: list[str] | None = None
) -> AsyncIterator[int]:
    """closed: gets why each connection was closed for want of room."""
    api = api or Api()
    listener = socket.create_server(("127.0.0.1", 0))
    protocol = protocol_with(head_timeout_s, Room(room, (closed if closed is not None else []).append))
    config = uvicorn.Config(api.app, http=protocol, ws=AbortingProtocol, log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await serving
        listener.close()


@pytest.mark.parametrize("begin", [b"", b"GET /livez HTTP/1.1\r\nHost: a\r\n"])
async def test_a_head_that_does_not_come_ends_the_connection(begin: bytes) -> None:
    async with served(0.1) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(begin)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await writer.wait_closed()


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        # Whoever is refused while it sends finds its connection reset.
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def is_let_in(port: int) -> bool:
    async with connected(port) as (reader, writer):
        writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            return b"200 OK" in await reader.readuntil(b"\r\n")
        return False


async def test_whoever_says_nothing_makes_way_for_whoever_comes() -> None:
    closed: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(served(60, room=3, closed=closed))
        silent = [await stack.enter_async_context(connected(port)) for _ in range(8)]
        # The last three are still there; each of the others left when there was one too many.
        for reader, _ in silent[:5]:
            assert await asyncio.wait_for(reader.read(), 10) == b""
        for reader, writer in silent[5:]:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
    assert closed == ["silent"] * 5


async def test_where_all_have_asked_for_something_the_newest_is_told_that_there_is_no_room() -> None:
    closed: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(served(60, room=3, closed=closed))
        kept = [await stack.enter_async_context(connected(port)) for _ in range(3)]
        for reader, writer in kept:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            await asyncio.wait_for(reader.readuntil(b"ok"), 10)
        async with connected(port) as (reader, _):
            told = await asyncio.wait_for(reader.read(), 10)
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"retry-after: 1" in told
        for reader, writer in kept:
            writer.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
            assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)
        assert closed == ["full"]
        kept[0][1].close()
        async with asyncio.timeout(10):
            while not await is_let_in(port):
                assert set(closed) == {"full"}, "whoever has asked for something does not make way"


def test_a_process_has_room_for_the_connections_that_it_is_let(monkeypatch: pytest.MonkeyPatch) -> None:
    limits, given = [(1024, 4096)], []
    monkeypatch.setattr("resource.getrlimit", lambda which: limits[0])
    monkeypatch.setattr("resource.setrlimit", lambda which, pair: given.append(pair))
    assert descriptors_for(500) == 500
    assert not given
    assert descriptors_for(2000) == 2000
    assert given == [(2256, 4096)]
    assert descriptors_for(10_000) == 3840
    assert given[-1] == (4096, 4096)


@pytest.mark.parametrize(
    "begin",
    [
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Long: ",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nCookie: a\r\nX: y",
        b"GET /",
        b"POST /v1/inference HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=",
        b"POST /v1/inference HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: ",
    ],
)
async def test_a_head_without_end_ends_the_connection(begin: bytes) -> None:
    async with served(60) as port, connected(port) as (reader, writer):
        writer.write(begin)
        with contextlib.suppress(ConnectionError):
            for _ in range(2000):
                writer.write(b"a" * 8192)
                await writer.drain()
            raise AssertionError("the server took all of it")
        assert reader.at_eof() or reader.exception() is not None


async def test_a_head_that_is_too_large_is_answered_431() -> None:
    async with served(60) as port, connected(port) as (reader, writer), connected(port) as (other, asking):
        writer.write(b"GET /livez HTTP/1.1\r\n")
        asking.write(b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await other.readline()).startswith(b"HTTP/1.1 200"), "so the line above was read too"
        writer.write(b"X: " + b"a" * (MOST_HEAD_BYTES + 1))
        head, _, body = (await asyncio.wait_for(reader.read(), 10)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 431 ")
        assert f"content-length: {len(body)}".encode() in head


async def test_bodies_and_pipelined_requests_are_no_heads() -> None:
    start = f"POST /v1/inference HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n".encode()
    size = 8 * MOST_HEAD_BYTES
    last = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    small_chunks = b"10\r\n%b\r\n" % (b"0" * 16) * 20_000 + b"0\r\n\r\n"
    async with served(60) as port, connected(port) as (reader, writer):
        writer.write((start + b"Content-Length: %d\r\n\r\n%b" % (size, b"0" * size)) * 3)
        writer.write(start + b"Transfer-Encoding: chunked\r\n\r\n" + small_chunks + last)
        answers = await asyncio.wait_for(reader.read(), 20)
    assert (answers.count(b"HTTP/1.1 400 "), answers.count(b"HTTP/1.1 200 ")) == (4, 1)


async def test_a_client_that_leaves_before_its_body_is_there_is_no_fault_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = Api()
    async with served(60, api) as port:
        async with connected(port) as (_, writer):
            writer.write(f"POST /v1/inference HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\n".encode())
            writer.write(b"Content-Length: 100\r\n\r\n{")
            await until(lambda: api.count("vla_requests_in_flight") == 1)
        await until(lambda: api.count("vla_requests_in_flight") == 0)
        await until(lambda: 'status="499"} 1.0' in api.metrics.exposition().decode())
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_refused_upgrade_is_no_fault_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nAuthorization: Api-Key wrong\r\n\r\n"
    async with served(60) as port, connected(port) as (reader, writer):
        writer.write(b"GET /v1/openpi HTTP/1.1\r\nHost: a\r\n" + upgrade + key)
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(b"HTTP/1.1 401 ")
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_peer_that_has_left_is_gone_and_no_fault() -> None:
    async def lost(message: object) -> None:
        raise ConnectionResetError

    async def nothing() -> Message:
        return {"type": "websocket.connect"}

    def left() -> Socket:
        websocket = WebSocket({"type": "websocket", "path": "/"}, nothing, lost)
        websocket.application_state = websocket.client_state = WebSocketState.CONNECTED
        return Socket(websocket)

    with pytest.raises(Gone):
        await left().send("text")
    with pytest.raises(Gone):
        await left().send(b"bytes")
    await left().close(1000)


async def test_a_reader_that_is_cancelled_just_as_a_frame_comes_ends() -> None:
    frames: asyncio.Queue[Message] = asyncio.Queue()

    async def unsent(message: object) -> None:
        raise AssertionError("nothing is sent here")

    websocket = WebSocket({"type": "websocket", "path": "/"}, frames.get, unsent)
    websocket.application_state = websocket.client_state = WebSocketState.CONNECTED
    reading_socket = Socket(websocket)

    async def read() -> None:
        while True:
            await reading_socket.receive(60)

    reading = asyncio.create_task(read())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    frames.put_nowait({"type": "websocket.receive", "text": "{}"})
    # Whoever was waiting has the frame now, and may not have handed it on yet.
    await asyncio.sleep(0)
    assert frames.empty()
    reading.cancel()
    ended, _ = await asyncio.wait({reading}, timeout=5)
    reading.cancel()
    assert ended


async def test_a_connection_in_use_outlives_the_heads_time() -> None:
    async with served(0.2) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        first = await client.get("/v1/models", headers={"authorization": f"Bearer {KEY}"})
        number = first.extensions["network_stream"].get_extra_info("client_addr")
        await asyncio.sleep(0.3)  # the one thing that this is about is that time passes
        second = await client.get("/v1/models")
        assert second.extensions["network_stream"].get_extra_info("client_addr") == number
        assert second.status_code == 200


def sandbox_with(**changes: Any) -> Settings:
    return sandbox(Path("/nowhere"), **changes)
