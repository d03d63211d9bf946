"""The one place where Postgres is connected to and where its errors are translated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import psycopg
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy import exc as sa_exc
from sqlalchemy.pool import QueuePool

from runtime.errors import Unavailable
from runtime.settings import Settings

#: A connection attempt that takes longer has failed.
CONNECT_TIMEOUT_S = 3
#: A statement that takes longer is cancelled by the server. None: migrations, which may rewrite tables.
STATEMENT_TIMEOUT_S = 10.0


class Database:
    """Connections from one pool. Thread-safe. Every method raises Unavailable while Postgres is away."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """One transaction: committed at the end of the block, rolled back where it raises."""
        with database_errors(), self.engine.begin() as connection:
            yield connection

    def ping(self) -> None:
        """Return if the server answers. Raises Unavailable."""
        with self.begin() as connection:
            connection.execute(text("SELECT 1"))

    def pool_in_use(self) -> int:
        """Connections of the pool that are handed out now."""
        return cast(QueuePool, self.engine.pool).checkedout()

    def close(self) -> None:
        self.engine.dispose()


def connect(
    settings: Settings,
    application_name: str,
    *,
    pool_size: int | None = None,
    statement_timeout_s: float | None = STATEMENT_TIMEOUT_S,
) -> Database:
    """A pool that connects on first use and checks a connection before it hands it out. Does no I/O."""
    options = "" if statement_timeout_s is None else f"-c statement_timeout={int(statement_timeout_s * 1000)}"
    engine = create_engine(
        settings.sqlalchemy_url,
        pool_size=pool_size if pool_size is not None else settings.database_pool_size,
        max_overflow=0,
        pool_pre_ping=True,
        # Someone who waits for a connection longer than it takes to open one gets Unavailable.
        pool_timeout=CONNECT_TIMEOUT_S,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": application_name,
            "options": options,
        },
    )
    return Database(engine)


@contextmanager
def database_errors() -> Iterator[None]:
    """Translate what Postgres and its driver raise while the server cannot be used.

    A missing table counts as that too: the migration may be on its way. Wrong SQL and broken constraints
    stay what they are.
    """
    try:
        yield
    except sa_exc.ProgrammingError as error:
        if getattr(error.orig, "sqlstate", None) in ("42P01", "42703"):
            raise Unavailable(f"{_first_line(error)}: run `vlastream db upgrade`") from error
        if getattr(error.orig, "sqlstate", None) == "42501":
            # As after a migration whose rights are still to come.
            raise Unavailable(f"{_first_line(error)}: run `vlastream db roles`") from error
        raise
    except (sa_exc.OperationalError, sa_exc.InterfaceError, sa_exc.TimeoutError) as error:
        raise Unavailable(f"Postgres does not answer: {_first_line(error)}") from error
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        # From a cursor of the driver itself, as COPY needs it.
        raise Unavailable(f"Postgres does not answer: {_first_line(error)}") from error
    except sa_exc.DBAPIError as error:
        if error.connection_invalidated:
            raise Unavailable(f"the connection to Postgres broke: {_first_line(error)}") from error
        raise


def _first_line(error: Exception) -> str:
    """The driver's own words, without the statement and its parameters."""
    cause = getattr(error, "orig", None) or error
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]
