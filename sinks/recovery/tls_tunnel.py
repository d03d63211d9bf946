"""A loopback port that leads to Postgres by TLS, for client programs that are built without it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.engine import URL

from runtime.relay import Ends, relay

_CONNECT_S = 5.0
#: The protocol's question whether the server speaks TLS, and its yes (PostgreSQL, "SSLRequest").
_SSL_REQUEST, _YES = struct.pack("!ii", 8, 80877103), b"S"


@dataclass(frozen=True, slots=True)
class Target:
    """A server as libpq's URL has it: `options` are sslmode, sslrootcert and sslnegotiation."""

    host: str
    port: int
    options: Mapping[str, str]

    def context(self) -> ssl.SSLContext:
        """As strict as libpq is with this sslmode."""
        mode, authority = self.options.get("sslmode", "prefer"), self.options.get("sslrootcert")
        context = ssl.create_default_context(cafile=None if authority == "system" else authority)
        context.check_hostname = mode == "verify-full"
        context.verify_mode = ssl.CERT_REQUIRED if mode in ("verify-full", "verify-ca") else ssl.CERT_NONE
        context.set_alpn_protocols(["postgresql"])
        return context

    async def connect(self) -> Ends:
        """Raises OSError."""
        async with asyncio.timeout(_CONNECT_S):
            reader, writer = await asyncio.open_connection(self.host, self.port)
            try:
                if self.options.get("sslnegotiation") != "direct":
                    writer.write(_SSL_REQUEST)
                    if await reader.read(1) != _YES:
                        raise ConnectionError("the server does not speak TLS")
                await writer.start_tls(self.context(), server_hostname=self.host)
            except BaseException:
                writer.transport.abort()
                raise
        return reader, writer


@contextmanager
def tunnel(target: Target) -> Iterator[int]:
    """The port, until the block ends. Who comes to it still needs the password.

    One thread reads and writes all connections: one of TLS must not be used by two, nor a socket's number be closed
    under a thread that still uses it.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = _Serving(listener, target)
        serving.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            serving.end()


@contextmanager
def reached(url: URL) -> Iterator[URL]:
    """The database of a URL, for a client that speaks no TLS. The way is as strict with its certificate as libpq."""
    options = {name: str(value) for name, value in url.query.items()}
    with tunnel(Target(url.host or "localhost", url.port or 5432, options)) as port:
        yield url.set(host="127.0.0.1", port=port).difference_update_query([n for n in options if n.startswith("ssl")])


class _Serving(threading.Thread):
    def __init__(self, listener: socket.socket, target: Target) -> None:
        super().__init__(name="tls-tunnel", daemon=True)
        self._listener = listener
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()

    def run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self.join()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._lead, sock=self._listener)
        await self._ended.wait()
        # Connections that are left end with the loop.
        server.close()

    async def _lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await self._target.connect()
        except OSError:
            # The program says that the server closed the connection.
            writer.close()
            return
        await relay((reader, writer), server)
