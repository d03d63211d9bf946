"""What alembic runs: against the connection that sinks/migrate.py hands over, else against DATABASE_URL."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection, text

import runtime.data_tables  # noqa: F401 - its tables join the metadata
from runtime.database import connect
from runtime.settings import load_settings
from runtime.tables import metadata

#: Key of the advisory lock that lets one migration run at a time; any constant that nobody else uses.
LOCK_KEY = 0x766C6173


def migrate(connection: Connection) -> None:
    """Upgrade or downgrade over this connection, alone: who comes second waits and then finds nothing to do."""
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": LOCK_KEY})
    connection.commit()
    try:
        context.configure(connection=connection, target_metadata=metadata, compare_server_default=True)
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()
    finally:
        connection.rollback()
        connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": LOCK_KEY})
        connection.commit()


if context.is_offline_mode():
    raise SystemExit("migrations need the database: set DATABASE_URL and run without --sql")
given = context.config.attributes.get("connection")
if given is not None:
    migrate(given)
else:
    database = connect(load_settings(), "vlastream-migrate", pool_size=1, statement_timeout_s=None)
    with database.engine.connect() as opened:
        migrate(opened)
    database.close()
