"""A database that is made beside the one in use, and takes its place in one step when it is whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import psycopg
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy.engine import make_url

from runtime.database import CONNECT_TIMEOUT_S, database_errors
from runtime.settings import Settings

#: A database that is always there.
_MAINTENANCE = "postgres"
_SUFFIX = "_new"


class Replacement:
    """Needs the right to create databases. Every method raises Unavailable while Postgres is away."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.name = make_url(settings.sqlalchemy_url).database or ""
        self.scratch = f"{self.name}{_SUFFIX}"

    def create(self) -> Settings:
        """An empty database; one left by an earlier attempt is dropped. Settings of whoever fills it."""
        with self._maintenance() as connection:
            _drop(connection, self.scratch)
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.scratch)))
        return self.settings_of(self.scratch)

    def retire(self, now: datetime) -> str | None:
        """Take the database in use out of it, whatever is connected: its new name, None if there is none.

        From here on the sinks wait and the API answers from its caches, until `adopt`.
        """
        with self._maintenance() as connection:
            if not _exists(connection, self.name):
                return None
            old = f"{self.name}_{now:%Y%m%d%H%M%S}"
            _rename(connection, self.name, old)
            return old

    def reinstate(self, old: str) -> None:
        """Undo `retire`."""
        with self._maintenance() as connection:
            _rename(connection, old, self.name)

    def adopt(self) -> None:
        """Put the new database into use."""
        with self._maintenance() as connection:
            _rename(connection, self.scratch, self.name)

    def discard(self) -> None:
        with self._maintenance() as connection:
            _drop(connection, self.scratch)

    def settings_of(self, database: str) -> Settings:
        url = make_url(self._settings.sqlalchemy_url).set(drivername="postgresql", database=database)
        values = self._settings.model_dump() | {"database_url": SecretStr(url.render_as_string(hide_password=False))}
        return Settings(_env_file=None, **values)

    @contextmanager
    def _maintenance(self) -> Iterator[psycopg.Connection]:
        url = self.settings_of(_MAINTENANCE).database_url.get_secret_value()
        with (
            database_errors(),
            psycopg.connect(url, autocommit=True, connect_timeout=CONNECT_TIMEOUT_S) as connection,
        ):
            yield connection


def _exists(connection: psycopg.Connection, name: str) -> bool:
    return connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone() is not None


def _drop(connection: psycopg.Connection, name: str) -> None:
    connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _rename(connection: psycopg.Connection, name: str, new_name: str) -> None:
    """Nobody may be connected to a database whose name changes, so nobody may come until it has changed."""
    named = sql.Identifier(name)
    connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(named))
    try:
        # Waits, up to 10 s, until the backend is gone.
        connection.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
        ).fetchall()
        connection.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(named, sql.Identifier(new_name)))
        named = sql.Identifier(new_name)
    finally:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(named))
