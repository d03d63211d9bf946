"""Deletes what is older than its time: rows after their copy in the lake is verified, then files of the lake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Date, Table, cast, delete, func, or_, select, update

from runtime.data_tables import (
    context_metadata,
    customer_data_consent,
    episodes,
    feedback,
    instruction_analytics,
    pending_embeddings,
    robot_performance_metrics,
)
from runtime.database import Database
from runtime.settings import Settings
from runtime.tables import inference_log, safety_incidents
from runtime.tenancy_tables import usage_robots
from sinks.arrow_schemas import EPISODES_DATASET, FEEDBACK_DATASET, OBSERVATIONS
from sinks.erasure import erase_from_lake
from sinks.etl.commands import open_database
from sinks.lake_reader import Lake, open_lake

log = logging.getLogger(__name__)

Say = Callable[[str], None]
FOREVER = -1
#: Raw tables besides inference_log, which is deleted by verified days.
_RAW: tuple[tuple[Table, Any], ...] = (
    (context_metadata, context_metadata.c.created_at),
    (pending_embeddings, pending_embeddings.c.created_at),
    (feedback, feedback.c.created_at),
    (episodes, func.coalesce(episodes.c.ended_at, episodes.c.started_at)),
)
_AGGREGATED: tuple[tuple[Table, Any], ...] = (
    (robot_performance_metrics, robot_performance_metrics.c.date),
    (instruction_analytics, instruction_analytics.c.last_seen),
    (usage_robots, usage_robots.c.date),
)


def run_retention(settings: Settings, *, dry_run: bool, say: Say, now: datetime | None = None) -> int:
    """Delete what is due; 1 where a day's rows are not in the lake, and therefore stay. Raises Unavailable."""
    database = open_database(settings)
    try:
        return Retention(settings, database, open_lake(settings), now or datetime.now(UTC)).run(dry_run, say)
    finally:
        database.close()


class Retention:
    def __init__(self, settings: Settings, database: Database, lake: Lake, now: datetime) -> None:
        self._settings = settings
        self._database = database
        self._lake = lake
        self._now = now

    def run(self, dry_run: bool, say: Say) -> int:
        settings = self._settings
        kept_back = 0
        if (before := self._before(settings.raw_data_retention_days)) is not None:
            kept_back = self._inference_rows(before, dry_run, say)
            for table, column in _RAW:
                self._delete(table, column < before, dry_run, say)
            if not kept_back:
                self._lake_files(before.date(), dry_run, say)
        if (before := self._before(settings.aggregated_data_retention_days)) is not None:
            for table, column in _AGGREGATED:
                self._delete(table, column < before, dry_run, say)
        if (before := self._before(settings.safety_data_retention_days)) is not None:
            self._delete(safety_incidents, safety_incidents.c.created_at < before, dry_run, say)
        if not dry_run:
            self._withdrawn(say)
        return 1 if kept_back else 0

    def _before(self, days: int) -> datetime | None:
        """Midnight UTC before which everything goes; None: nothing ever."""
        if days == FOREVER:
            return None
        return datetime.combine(self._now.date() - timedelta(days=days), datetime.min.time(), UTC)

    def _inference_rows(self, before: datetime, dry_run: bool, say: Say) -> int:
        """Delete whole days whose rows the lake has; how many days had to stay."""
        log_day = cast(func.timezone("UTC", inference_log.c.created_at), Date)
        counts = select(log_day, func.count()).where(inference_log.c.created_at < before).group_by(log_day)
        with self._database.begin() as connection:
            days = connection.execute(counts.order_by(log_day)).all()
        kept_back = 0
        for day, count in days:
            archived = self._archived(day)
            with self._database.begin() as connection:
                ids = connection.execute(select(inference_log.c.id).where(log_day == day)).scalars()
                missing = sum(str(row_id) not in archived for row_id in ids)
            if missing:
                kept_back += 1
                say(f"{day}: {missing} of {count} rows are not in the lake, so the day stays: look at `sink parquet`")
            else:
                self._delete(inference_log, log_day == day, dry_run, say, f"inference_log of {day}")
        return kept_back

    def _archived(self, day: date) -> set[str]:
        """Ids of the rows that the lake has of a day, and of the next one, on which outcomes may have come."""
        found = self._lake.dataset("outcomes", [day, day + timedelta(days=1)]).to_table(columns=["row_id"])
        return set(found.column("row_id").to_pylist())

    def _delete(self, table: Table, which: Any, dry_run: bool, say: Say, what: str = "") -> None:
        """In batches, each in a transaction of its own."""
        if dry_run:
            with self._database.begin() as connection:
                count = connection.execute(select(func.count()).select_from(table).where(which)).scalar_one()
            say(f"would delete {count:>8} rows: {what or table.name}")
            return
        deleted = 0
        while (gone := self._delete_batch(table, which)) > 0:
            deleted += gone
        if deleted:
            say(f"deleted {deleted:>8} rows: {what or table.name}")

    def _delete_batch(self, table: Table, which: Any) -> int:
        key = list(table.primary_key.columns)
        some = select(*key).where(which).limit(self._settings.etl_batch_size).subquery()
        same = [column == some.c[column.name] for column in key]
        with self._database.begin() as connection:
            return int(connection.execute(delete(table).where(*same)).rowcount)

    def _lake_files(self, before: date, dry_run: bool, say: Say) -> None:
        for dataset in ("observations", "outcomes", "feedback", "episodes"):
            days = [day for day in self._lake.days(dataset) if day < before]
            # The newest file of a partition's chain says where its sink goes on: the newest day always stays.
            days = [day for day in days if day != self._lake.days(dataset)[-1]]
            keys = self._lake.keys(dataset, days) if days else []
            for key in keys if not dry_run else []:
                self._lake.storage.delete(key)
            if keys:
                say(f"{'would delete' if dry_run else 'deleted'} {len(keys):>8} files: {dataset} before {before}")

    def _withdrawn(self, say: Say) -> None:
        """What was kept with a consent that has ended since: texts, vectors and scenes, and the lake's rows."""
        consent = customer_data_consent.c
        ended = or_(consent.tier == "none", consent.expires_at <= self._now)
        salt = self._settings.anonymization_hash_salt.get_secret_value()
        with self._database.begin() as connection:
            customers = connection.execute(select(consent.customer_id).where(ended)).scalars().all()
        for customer in customers:
            with self._database.begin() as connection:
                rows = _forget(connection, customer)
            now_ms = round(self._now.timestamp() * 1000)
            datasets = (OBSERVATIONS, FEEDBACK_DATASET, EPISODES_DATASET)
            files = erase_from_lake(self._lake.storage, customer, now_ms, salt, datasets)
            if rows or any(files.values()):
                say(f"consent of {customer} has ended: {rows} rows and {sum(files.values())} rows of the lake went")


def _forget(connection: Connection, customer_id: str) -> int:
    log_row = inference_log
    held = or_(log_row.c.instruction.is_not(None), log_row.c.instruction_embedding.is_not(None))
    emptied = connection.execute(
        update(log_row)
        .where(log_row.c.customer_id == customer_id, held)
        .values(instruction=None, instruction_category=None, instruction_embedding=None, image_shape=None)
    )
    scenes = connection.execute(delete(context_metadata).where(context_metadata.c.customer_id == customer_id))
    return int(emptied.rowcount + scenes.rowcount)
