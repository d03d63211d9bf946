"""`vlastream db psql`: Postgres' own client at DATABASE_URL, by TLS even where it was built without."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext

from sqlalchemy.engine import make_url

from runtime.settings import Settings
from sinks.recovery.postgres_dump import client_program
from sinks.recovery.tls_tunnel import reached

_TLS_MODES = ("require", "verify-ca", "verify-full")


def psql(settings: Settings, arguments: Sequence[str]) -> int:
    """Its exit status. A first argument that is DATABASE_URL itself means what it means anyway. Raises Fatal."""
    url = make_url(settings.sqlalchemy_url)
    given = list(arguments)
    if given[:1] == [settings.database_url.get_secret_value()]:
        del given[0]
    # A server that wants no TLS is reached as it is.
    way = reached(url) if url.query.get("sslmode") in _TLS_MODES else nullcontext(url)
    with way as where, tempfile.NamedTemporaryFile("w", prefix="vlastream-", suffix=".pgpass") as password:
        # Of its owner alone, and off the command line, which everybody on this machine can read.
        password.write("*:*:*:*:" + re.sub(r"([:\\])", r"\\\1", url.password or "") + "\n")
        password.flush()
        named = where.set(drivername="postgresql", password=None).update_query_dict({"passfile": password.name})
        command = [client_program("psql"), f"--dbname={named.render_as_string(hide_password=False)}", *given]
        return subprocess.run(command, check=False).returncode
