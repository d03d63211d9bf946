"""Schema first, processes after: the sink of yesterday goes on under tomorrow's schema, and tomorrow's waits for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import text

from runtime.database import Database, connect
from runtime.errors import Unavailable
from runtime.settings import Settings
from schemas.topics import OUTCOMES
from sinks.marks import Buffer, Limits, Partition
from sinks.migrate import alembic_config, newest_revision, upgrade
from sinks.postgres import AnyRow, PostgresStore
from tests import factories as f
from tests.sink_case import consents, postgres_decoder

PARTITION = Partition(OUTCOMES, 0)
LIMITS = Limits(rows=10, size_bytes=10**9, age_s=1)
#: What a migration may do while processes of the version before it run.
NEXT = '''
"""Tomorrow."""
import sqlalchemy as sa
from alembic import op
revision = "next"
down_revision = "{head}"
branch_labels = None
depends_on = None

def upgrade():
    op.add_column("inference_log", sa.Column("weather", sa.Text(), nullable=True))
    op.add_column("inference_log", sa.Column("priority", sa.Integer(), nullable=False, server_default="5"))
    op.create_table("forecasts", sa.Column("id", sa.Uuid(), primary_key=True))
    with op.get_context().autocommit_block():
        op.create_index("inference_log_by_weather", "inference_log", ["weather"], postgresql_concurrently=True)

def downgrade():
    op.drop_index("inference_log_by_weather", table_name="inference_log")
    op.drop_table("forecasts")
    op.drop_column("inference_log", "priority")
    op.drop_column("inference_log", "weather")
'''


@pytest.fixture
def settings(fresh_database: str) -> Settings:
    return Settings(_env_file=None, database_url=fresh_database)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = connect(settings, "test", pool_size=2, statement_timeout_s=None)
    yield opened
    opened.close()


class Sink:
    """Yesterday's sink: one store, rows without end."""

    def __init__(self, database: Database, partition: Partition = PARTITION) -> None:
        self._store = PostgresStore(database, consents())
        self._partition = partition
        self._decode = postgres_decoder()
        self.written = 0

    def write(self) -> None:
        mark = self._store.open(self._partition)
        buffer = Buffer[AnyRow](mark, mark.next_offset, LIMITS)
        offset = mark.next_offset
        record = f.record(f.outcome(results_offset=offset).SerializeToString(), offset=offset)
        buffer.add(self._decode(record), 0)
        batch = buffer.batch()
        assert batch is not None
        self._store.write(self._partition, batch)
        self.written += 1


def _migrate(database: Database, folder: Path, revision: str, *, down: bool = False) -> None:
    (folder / "next.py").write_text(NEXT.format(head=newest_revision()))
    config = alembic_config()
    versions = Path(str(config.get_main_option("script_location"))) / "versions"
    # Separated as `path_separator = os` says.
    config.set_main_option("version_locations", f"{versions}:{folder}")
    with database.engine.connect() as connection:
        config.attributes["connection"] = connection
        (command.downgrade if down else command.upgrade)(config, revision)


def test_a_running_sink_writes_on_while_the_schema_moves_and_after_it_and_back(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    upgrade(settings)
    sink = Sink(database)
    sink.write()
    stop, failures = threading.Event(), list[BaseException]()
    moved = threading.Condition()

    def run() -> None:
        try:
            while not stop.is_set():
                sink.write()
                with moved:
                    moved.notify_all()
        except BaseException as error:
            failures.append(error)

    def ten_more() -> None:
        goal = sink.written + 10
        with moved:
            assert moved.wait_for(lambda: sink.written >= goal or bool(failures), timeout=30)

    thread = threading.Thread(target=run)
    thread.start()
    migrating = connect(settings, "migrate", pool_size=1, statement_timeout_s=None)
    try:
        ten_more()
        _migrate(migrating, tmp_path, "next")
        ten_more()
        # Yesterday's version may also start under tomorrow's schema.
        with closing(connect(settings, "restarted", pool_size=1, statement_timeout_s=None)) as fresh:
            Sink(fresh, Partition(OUTCOMES, 1)).write()
        with database.begin() as connection:
            priorities = connection.execute(text("SELECT DISTINCT priority, weather FROM inference_log")).all()
        _migrate(migrating, tmp_path, newest_revision(), down=True)
        ten_more()
    finally:
        stop.set()
        thread.join()
        migrating.close()
    assert failures == []
    assert [tuple(row) for row in priorities] == [(5, None)]
    with database.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM inference_log")).scalar_one() == sink.written + 1


def test_a_sink_that_is_newer_than_the_schema_waits_and_says_what_to_run(
    settings: Settings, database: Database
) -> None:
    upgrade(settings, "0001")
    sink = Sink(database)
    with pytest.raises(Unavailable, match="vlastream db upgrade"):
        sink.write()
    upgrade(settings)
    sink.write()
    assert sink.written == 1
