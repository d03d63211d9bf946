"""TLS for servers whose packages are built without it: takes connections by TLS and hands them on over loopback.

    python -m runtime.stack.tls_front CHAIN KEY LISTEN:TARGET[:ALPN] ...

Ends TLS where the server would. Postgres' clients begin with TLS at once (sslnegotiation=direct, PostgreSQL 17).
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from dataclasses import dataclass

from runtime.relay import relay


@dataclass(frozen=True)
class Route:
    listen_port: int
    target_port: int
    #: Application protocol that clients must ask for; empty: none.
    alpn: str = ""

    def __str__(self) -> str:
        return f"{self.listen_port}:{self.target_port}" + (f":{self.alpn}" if self.alpn else "")

    @classmethod
    def parse(cls, text: str) -> Route:
        listen, target, *alpn = text.split(":")
        return cls(int(listen), int(target), alpn[0] if alpn else "")


async def _hand_on(route: Route, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        server = await asyncio.open_connection("127.0.0.1", route.target_port)
    except OSError:
        writer.close()
        return
    await relay((reader, writer), server)


async def _serve(chain: str, key: str, routes: list[Route]) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    for route in routes:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(chain, key)
        if route.alpn:
            context.set_alpn_protocols([route.alpn])

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, route: Route = route) -> None:
            await _hand_on(route, reader, writer)

        await asyncio.start_server(accept, "127.0.0.1", route.listen_port, ssl=context)
    await stop.wait()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], sys.argv[2], [Route.parse(text) for text in sys.argv[3:]]))
