"""The way to Postgres for programs without TLS: as strict as libpq, with and without the question beforehand."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.stack.layout import Layout
from runtime.stack.security import StackSecurity
from sinks.recovery.tls_tunnel import Target, tunnel


@pytest.fixture
def security(tmp_path: Path) -> StackSecurity:
    layout = Layout(tmp_path / "stack")
    layout.create()
    made = StackSecurity(layout)
    made.prepare()
    return made


@contextmanager
def server(security: StackSecurity, *, asked: bool) -> Iterator[int]:
    """Says by TLS what it hears. asked: after the protocol's question, as Postgres before 17."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(security.certificates.chain, security.certificates.key)

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with contextlib.suppress(OSError), plain:
                    if asked:
                        assert plain.recv(8) == b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
                        plain.sendall(b"S")
                    with context.wrap_socket(plain, server_side=True) as secure:
                        secure.sendall(secure.recv(100))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def said(target: Target) -> bytes:
    """What comes back through the tunnel; nothing where it does not lead anywhere."""
    with tunnel(target) as port, socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        with contextlib.suppress(OSError):
            client.sendall(b"hello")
            return client.recv(100)
        return b""


@pytest.mark.parametrize("asked", [True, False])
def test_it_leads_to_who_holds_the_right_certificate_alone(
    security: StackSecurity, tmp_path: Path, asked: bool
) -> None:
    elsewhere = Layout(tmp_path / "other")
    elsewhere.create()
    other = StackSecurity(elsewhere)
    other.prepare()
    way = {"sslmode": "verify-full", **({} if asked else {"sslnegotiation": "direct"})}
    with server(security, asked=asked) as port:
        trusted = {**way, "sslrootcert": str(security.certificates.ca)}
        strange = {**way, "sslrootcert": str(other.certificates.ca)}
        assert said(Target("127.0.0.1", port, trusted)) == b"hello"
        assert said(Target("127.0.0.1", port, strange)) == b""
        # What libpq does not check either.
        assert said(Target("127.0.0.1", port, {**strange, "sslmode": "require"})) == b"hello"


def test_a_server_that_is_away_ends_the_programs_connection(security: StackSecurity) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    assert said(Target("127.0.0.1", port, {"sslmode": "require"})) == b""


def test_what_ends_a_connection_is_written_nowhere_else(security: StackSecurity) -> None:
    """A file that is opened while connections end gets the number of one of them next."""
    trusted = {"sslmode": "verify-full", "sslnegotiation": "direct", "sslrootcert": str(security.certificates.ca)}
    with server(security, asked=False) as port, tunnel(Target("127.0.0.1", port, trusted)) as way:
        for _ in range(200):
            with socket.create_connection(("127.0.0.1", way), timeout=20) as client:
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
            for _ in range(20):
                read_end, write_end = os.pipe()
                ready, _, _ = select.select([read_end], [], [], 0.0002)
                found = os.read(read_end, 100) if ready else b""
                os.close(read_end)
                os.close(write_end)
                assert found == b""
