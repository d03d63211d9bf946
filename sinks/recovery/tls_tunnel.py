"""A loopback port that leads to Postgres by TLS, for client programs that are built without it."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

_CHUNK_BYTES = 64 * 1024
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

    def connect(self) -> ssl.SSLSocket:
        """Raises OSError."""
        plain = socket.create_connection((self.host, self.port), timeout=_CONNECT_S)
        try:
            if self.options.get("sslnegotiation") != "direct":
                plain.sendall(_SSL_REQUEST)
                if plain.recv(1) != _YES:
                    raise ConnectionError("the server does not speak TLS")
            secure = self.context().wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise
        secure.settimeout(None)
        return secure


@contextmanager
def tunnel(target: Target) -> Iterator[int]:
    """The port, until the block ends. Who comes to it still needs the password."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=_serve, args=(listener, target), name="tls-tunnel", daemon=True).start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            # Wakes the thread that waits in accept.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _serve(listener: socket.socket, target: Target) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            try:
                server = target.connect()
            except OSError:
                # The program says that the server closed the connection.
                client.close()
                continue
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=_copy, args=(source, sink), name="tls-tunnel", daemon=True).start()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK_BYTES):
            sink.sendall(data)
    # Either end may leave first, and both connections end together.
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
