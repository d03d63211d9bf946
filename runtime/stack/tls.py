"""The TLS front of Postgres and Valkey, whose packages are built without TLS, as one process of the stack."""

from __future__ import annotations

import socket
import sys

from runtime.stack.component import Command, Component, Say
from runtime.stack.layout import LOOPBACK, Layout
from runtime.stack.postgres import Postgres
from runtime.stack.security import StackSecurity
from runtime.stack.tls_front import Route
from runtime.stack.valkey import Valkey


class TlsFront(Component):
    """Clients check its certificate as they would that of a server which speaks TLS itself."""

    name = role = "tls"

    def __init__(self, layout: Layout, security: StackSecurity, postgres: Postgres, valkey: Valkey) -> None:
        self._security = security
        ca = security.certificates.ca
        postgres_port, valkey_port = layout.port("postgres-tls"), layout.port("valkey-tls")
        self._routes = (Route(postgres_port, postgres.port, "postgresql"), Route(valkey_port, valkey.port))
        self._postgres = postgres
        self.database_url = postgres.dsn_by_tls(postgres_port, ca)
        self.redis_url = valkey.url_by_tls(valkey_port, ca)

    def database_url_of(self, user: str, password: str) -> str:
        """For a user other than the owner of the tables."""
        return self._postgres.dsn_by_tls(self._routes[0].listen_port, self._security.certificates.ca, user, password)

    def prepare(self, say: Say) -> None:
        self._security.prepare()

    def command(self) -> Command:
        files = self._security.certificates
        routes = map(str, self._routes)
        return Command([sys.executable, "-m", "runtime.stack.tls_front", str(files.chain), str(files.key), *routes])

    def is_ready(self) -> bool:
        try:
            for route in self._routes:
                socket.create_connection((LOOPBACK, route.listen_port), timeout=0.5).close()
        except OSError:
            return False
        return True
