"""The migrations make the tables that the code expects, whoever runs them and however often."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

import runtime.data_tables
import runtime.tenancy_tables  # noqa: F401 - and so do these
from runtime.database import Database, connect
from runtime.errors import Unavailable
from runtime.settings import Settings
from runtime.tables import metadata
from sinks.migrate import alembic_config, newest_revision, upgrade

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def settings(fresh_database: str) -> Settings:
    return Settings(_env_file=None, database_url=fresh_database)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = connect(settings, "test", pool_size=1)
    yield opened
    opened.close()


def test_migrations_make_exactly_the_declared_tables(settings: Settings, database: Database) -> None:
    assert upgrade(settings) == newest_revision()
    with database.begin() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_a_second_upgrade_finds_nothing_to_do(settings: Settings) -> None:
    assert upgrade(settings) == upgrade(settings)


def test_two_upgrades_at_once_make_one(fresh_database: str) -> None:
    code = (
        "from runtime.settings import Settings; from sinks.migrate import upgrade; "
        "print(upgrade(Settings(_env_file=None)))"
    )
    environment = {**os.environ, "DATABASE_URL": fresh_database, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err.decode()
        assert out.decode().strip() == newest_revision()


def test_plain_alembic_does_the_same(fresh_database: str, database: Database) -> None:
    environment = {**os.environ, "DATABASE_URL": fresh_database}
    subprocess.run([sys.executable, "-m", "alembic", "upgrade", "head"], cwd=ROOT, env=environment, check=True)
    with database.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM inference_log")).scalar_one() == 0


def test_what_goes_up_comes_down(settings: Settings, database: Database) -> None:
    upgrade(settings)
    config = alembic_config()
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with database.begin() as connection:
        left = connection.execute(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).scalars().all()
    assert left == ["alembic_version"]


def test_a_database_without_tables_says_what_to_run(database: Database) -> None:
    with pytest.raises(Unavailable, match="vlastream db upgrade"), database.begin() as connection:
        connection.execute(text("SELECT 1 FROM inference_log"))


def test_a_database_that_is_away_is_unavailable() -> None:
    settings = Settings(_env_file=None, database_url="postgresql://a:secret@127.0.0.1:9/b")
    database = connect(settings, "test", pool_size=1)
    with pytest.raises(Unavailable) as caught:
        database.ping()
    assert "secret" not in str(caught.value)
    database.close()


def test_a_statement_that_takes_too_long_is_cancelled(settings: Settings) -> None:
    database = connect(settings, "test", pool_size=1, statement_timeout_s=0.05)
    with pytest.raises(Unavailable, match="timeout"), database.begin() as connection:
        connection.execute(text("SELECT pg_sleep(5)"))
    database.close()


def test_a_connection_that_the_server_ended_is_replaced(settings: Settings, database: Database) -> None:
    with database.begin() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    database.ping()
