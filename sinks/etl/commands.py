"""One day's analytics, pipeline by pipeline: `vlastream etl run`, and what the scheduler runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from duckdb import DuckDBPyConnection
from sqlalchemy import func
from sqlalchemy.dialects.postgresql import insert

from runtime.data_tables import etl_runs
from runtime.database import Database, connect, database_errors
from runtime.errors import Fatal
from runtime.settings import Settings
from sinks.etl import analytics, performance
from sinks.etl.people import customers_by_hash
from sinks.lake_reader import Lake, open_lake

Say = Callable[[str], None]
NAME = "vlastream-etl"
#: In the order in which they run: later ones read what earlier ones wrote.
PIPELINES = ("performance", "instructions", "context", "usage")
_STATEMENT_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Report:
    pipeline: str
    rows_read: int
    rows_written: int
    seconds: float

    def line(self) -> str:
        return f"{self.pipeline:<14} read {self.rows_read:>8}  wrote {self.rows_written:>8}  {self.seconds:6.1f} s"


class Etl:
    """Runs pipelines of one day. Each writes in one transaction: killed at any point, it may simply run again."""

    def __init__(self, settings: Settings, database: Database, lake: Lake) -> None:
        self._settings = settings
        self._database = database
        self._lake = lake

    def run(self, day: date, pipelines: Sequence[str], *, dry_run: bool, say: Say) -> list[Report]:
        """Raises Unavailable while a server is away; what was written before stays."""
        found = performance.lake_day(self._lake, day)
        row = found.execute("SELECT count(*) FROM day").fetchone()
        read = int(row[0]) if row is not None else 0
        with self._database.begin() as connection:
            salt = self._settings.anonymization_hash_salt.get_secret_value()
            known = customers_by_hash(connection, salt, self._settings.fleets)
        reports = []
        for pipeline in [name for name in PIPELINES if name in pipelines]:
            started = time.monotonic()
            if not dry_run:
                self._note(day, pipeline, "running")
            try:
                written = self._one(pipeline, day, found, known.get, dry_run=dry_run)
            except Exception as error:
                if not dry_run:
                    self._note(day, pipeline, "failed", error=str(error)[:500])
                raise
            reports.append(Report(pipeline, read, written, time.monotonic() - started))
            if not dry_run:
                self._note(day, pipeline, "done", rows_read=read, rows_written=written)
            say(f"{day}  {reports[-1].line()}")
        return reports

    def _one(
        self,
        pipeline: str,
        day: date,
        found: DuckDBPyConnection,
        customer_of: Callable[[str], str | None],
        *,
        dry_run: bool,
    ) -> int:
        if pipeline == "performance":
            rows = performance.performance_rows(found, day, customer_of)
            if not dry_run:
                with self._database.begin() as connection:
                    performance.write_performance(connection, day, rows)
            return len(rows)
        if pipeline == "instructions":
            rows = analytics.instruction_rows(self._lake, found, customer_of)
            size = self._settings.etl_batch_size
            for start in range(0, 0 if dry_run else len(rows), size):
                with self._database.begin() as connection:
                    analytics.write_instructions(connection, rows[start : start + size])
            return len(rows)
        if pipeline == "context":
            if dry_run:
                return 0
            with self._database.begin() as connection:
                return analytics.complete_context(connection, day)
        if not dry_run:
            self.refresh_usage()
        return len(analytics.VIEWS)

    def refresh_usage(self) -> None:
        """Bring the usage views up to now, while others read them. Raises Unavailable."""
        options = {"isolation_level": "AUTOCOMMIT"}
        with database_errors(), self._database.engine.connect().execution_options(**options) as connection:
            analytics.refresh_usage(connection)

    def _note(self, day: date, pipeline: str, state: str, **fields: object) -> None:
        finished = func.now() if state != "running" else None
        values = {"state": state, "error": None, **fields, "finished_at": finished}
        new = insert(etl_runs).values(date=day, pipeline=pipeline, **values)
        again = {**values, **({"started_at": func.now()} if state == "running" else {})}
        with self._database.begin() as connection:
            connection.execute(new.on_conflict_do_update(index_elements=["date", "pipeline"], set_=again))


def run_etl(settings: Settings, *, day: date | None, pipelines: Sequence[str], dry_run: bool, say: Say) -> int:
    """Run one day's pipelines now, yesterday's without a date; the exit status. Raises Fatal, Unavailable."""
    unknown = sorted(set(pipelines) - set(PIPELINES))
    if unknown:
        raise Fatal(f"no pipeline is named {unknown[0]}: there are {', '.join(PIPELINES)}")
    chosen = day if day is not None else datetime.now(UTC).date() - timedelta(days=1)
    database = open_database(settings)
    try:
        reports = Etl(settings, database, open_lake(settings)).run(
            chosen, pipelines or PIPELINES, dry_run=dry_run, say=say
        )
    finally:
        database.close()
    written = sum(report.rows_written for report in reports)
    say(f"{chosen}: {'would write' if dry_run else 'wrote'} {written} rows in {len(reports)} pipelines")
    return 0


def open_database(settings: Settings) -> Database:
    return connect(settings, NAME, pool_size=2, statement_timeout_s=_STATEMENT_TIMEOUT_S)
