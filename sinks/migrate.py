"""Brings the database's tables to the newest revision."""

from __future__ import annotations

import logging
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from runtime.database import connect, database_errors
from runtime.settings import Settings
from sinks.grants import renew

log = logging.getLogger(__name__)


def alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    return config


def newest_revision() -> str:
    return ScriptDirectory.from_config(alembic_config()).get_current_head() or ""


def upgrade(settings: Settings, revision: str = "head") -> str:
    """Run what is missing and return the revision now in place. Safe when several processes do it at once.

    The roles' users, where there are any, get their rights on what is new.

    Raises Unavailable while Postgres is away.
    """
    database = connect(settings, "vlastream-migrate", pool_size=1, statement_timeout_s=None)
    config = alembic_config()
    try:
        with database_errors(), database.engine.connect() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
            current = MigrationContext.configure(connection).get_current_revision() or ""
            # Asking for the revision has begun a transaction.
            renew(connection)
            connection.commit()
    finally:
        database.close()
    log.info("the database is at revision %s", current, extra={"action": "db_upgrade"})
    return current
