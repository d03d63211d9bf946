"""Fixtures: the embedded servers, each started at its first use, once a session, in a temporary folder."""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from runtime.stack.component import Component, tail
from runtime.stack.kafka import QUICK_START, Kafka
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from runtime.stack.s3 import S3, S3Settings
from runtime.stack.valkey import Valkey

_START_TIMEOUT_S = 120.0


class RunningServer:
    """One embedded server that a test may end and start again."""

    def __init__(self, component: Component, layout: Layout) -> None:
        self._component = component
        self._log = layout.log(component.name)
        self._process = self._spawn()

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.send_signal(self._component.stop_signal)
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.kill()

    def start(self) -> None:
        """Start it again after `kill` or `stop`, on its old port and data."""
        self._process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        self._component.prepare(print)
        process = self._component.command().spawn(log=self._log, dies_by=signal.SIGKILL)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._component.is_ready():
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                process.wait()
                raise RuntimeError(f"{self._component.name} did not start:\n{tail(self._log)}")
            time.sleep(0.05)
        return process


@contextmanager
def running(component: Component, layout: Layout) -> Iterator[RunningServer]:
    """Start one server, wait until it serves, and stop it at the end."""
    server = RunningServer(component, layout)
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def server_layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """The folder of this session's servers."""
    layout = Layout(tmp_path_factory.mktemp("servers"))
    layout.create()
    return layout


@pytest.fixture(scope="session")
def kafka_bootstrap(server_layout: Layout) -> Iterator[str]:
    """`host:port` of a Kafka without topics of ours. Tests share it: give topics and groups names of your own."""
    kafka = Kafka(server_layout, QUICK_START)
    with running(kafka, server_layout):
        yield kafka.bootstrap


@pytest.fixture(scope="session")
def postgres_server(server_layout: Layout) -> Iterator[Postgres]:
    postgres = Postgres(server_layout, {"fsync": "off", "full_page_writes": "off"})
    with running(postgres, server_layout):
        yield postgres


@pytest.fixture(scope="session")
def postgres_dsn(postgres_server: Postgres) -> str:
    """DSN of a database that all tests of the session share; prefer `fresh_database`."""
    return postgres_server.dsn


_database_numbers = itertools.count(1)


@pytest.fixture
def fresh_database(postgres_server: Postgres) -> Iterator[str]:
    """DSN of an empty database of this test's own."""
    with empty_database(postgres_server) as dsn:
        yield dsn


@contextmanager
def empty_database(postgres_server: Postgres) -> Iterator[str]:
    """DSN of a new database, gone afterwards."""
    name = f"test_{next(_database_numbers)}"
    with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    try:
        yield postgres_server.dsn_of(name)
    finally:
        with psycopg.connect(postgres_server.dsn, autocommit=True) as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="session")
def valkey_url(server_layout: Layout) -> Iterator[str]:
    """`redis://` URL. Tests share it: give keys a prefix of your own."""
    valkey = Valkey(server_layout)
    with running(valkey, server_layout):
        yield valkey.url


@pytest.fixture(scope="session")
def s3_settings(server_layout: Layout) -> Iterator[S3Settings]:
    """Endpoint, bucket and credentials. Tests share the bucket: give objects a prefix of your own."""
    s3 = S3(server_layout)
    with running(s3, server_layout):
        yield s3.settings


@pytest.fixture
def own_layout(tmp_path: Path) -> Layout:
    """A folder for a server that the test itself kills."""
    layout = Layout(tmp_path / "stack")
    layout.create()
    return layout
