"""`vlastream db psql`: Postgres' own client at DATABASE_URL, by TLS even where it was built without."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sqlalchemy.engine import URL, make_url

from runtime.settings import Settings
from sinks.recovery.postgres_dump import client_program
from sinks.recovery.tls_tunnel import Target, tunnel

_TLS_MODES = ("require", "verify-ca", "verify-full")


def psql(settings: Settings, arguments: Sequence[str]) -> int:
    """Its exit status. A first argument that is DATABASE_URL itself means what it means anyway. Raises Fatal."""
    url = make_url(settings.sqlalchemy_url)
    given = list(arguments)
    if given[:1] == [settings.database_url.get_secret_value()]:
        del given[0]
    with _reached(url) as where, tempfile.NamedTemporaryFile("w", prefix="vlastream-", suffix=".pgpass") as password:
        # Of its owner alone, and off the command line, which everybody on this machine can read.
        password.write("*:*:*:*:" + re.sub(r"([:\\])", r"\\\1", url.password or "") + "\n")
        password.flush()
        named = where.set(drivername="postgresql", password=None).update_query_dict({"passfile": password.name})
        command = [client_program("psql"), f"--dbname={named.render_as_string(hide_password=False)}", *given]
        return subprocess.run(command, check=False).returncode


@contextmanager
def _reached(url: URL) -> Iterator[URL]:
    """Where a client without TLS finds the server. The tunnel is as strict with its certificate as libpq."""
    options = {name: str(value) for name, value in url.query.items()}
    if options.get("sslmode") not in _TLS_MODES:
        yield url
        return
    with tunnel(Target(url.host or "localhost", url.port or 5432, options)) as port:
        yield url.set(host="127.0.0.1", port=port).difference_update_query([n for n in options if n.startswith("ssl")])
