"""Role `etl serve`: analytics and retention when they are due, erasures as they are asked for. One of many works."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta

from redis import Redis, RedisError
from sqlalchemy import select, text

from runtime.data_tables import etl_runs
from runtime.database import Database, database_errors
from runtime.errors import Unavailable
from runtime.lifecycle import Lifecycle
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.status_server import StatusServer
from sinks.compaction import compact, settled_days
from sinks.etl.commands import PIPELINES, Etl, open_database
from sinks.etl.erasures import Erasures
from sinks.etl.schedule import days_due, is_due
from sinks.lake_reader import Lake, open_lake
from sinks.retention import Retention

log = logging.getLogger(__name__)

#: Key of the lock that one working process holds; any constant that nobody else uses.
_LOCK_KEY = 0x766C6574
#: How old the figures of the running day may be.
USAGE_REFRESH = timedelta(hours=1)
_ROUND_S = 1.0
_PAUSE_S = 2.0


def main(settings: Settings) -> int:
    """Run the role until it is told to stop; returns its exit status."""
    lifecycle = Lifecycle(settings.shutdown_timeout_s)
    metrics = Metrics()
    database = open_database(settings)
    lifecycle.on_close("database", lambda deadline: database.close())
    redis = Redis.from_url(settings.redis_url.get_secret_value(), socket_timeout=5.0, socket_connect_timeout=5.0)
    lifecycle.on_close("valkey", lambda deadline: redis.close())
    worker = Worker(settings, database, open_lake(settings), redis, metrics)
    status = StatusServer(
        host=settings.host,
        port=settings.metrics_port,
        metrics=metrics if settings.enable_prometheus else None,
        waiting=worker.waiting,
    )
    lifecycle.on_close("status", status.close)
    with lifecycle.signals():
        try:
            while not lifecycle.stopping.is_set():
                try:
                    with only_one(database) as alone:
                        worker.found_servers()
                        while alone() and not lifecycle.stopping.is_set():
                            worker.round()
                            lifecycle.stopping.wait(_ROUND_S)
                except (Unavailable, RedisError) as error:
                    log.warning("waiting: %s", error, extra={"action": "retry"})
                lifecycle.stopping.wait(_PAUSE_S)
        except Exception as error:
            lifecycle.fail(error)
        return lifecycle.close()


@contextmanager
def only_one(database: Database) -> Iterator[Callable[[], bool]]:
    """Whether this process is the one that works; asked again, whether it still is: the lock ends with a connection."""
    with database_errors(), database.engine.connect() as connection:
        got = bool(connection.execute(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK_KEY}).scalar_one())
        connection.commit()

        def still() -> bool:
            if got:
                connection.execute(text("SELECT 1"))
                connection.commit()
            return got

        try:
            yield still
        finally:
            if got:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK_KEY})
                connection.commit()


class Worker:
    """One round does what is due by now. now: the wall clock, UTC."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        lake: Lake,
        redis: Redis,
        metrics: Metrics,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._settings = settings
        self._database = database
        self._lake = lake
        self._metrics = metrics
        self._now = now
        self._salt = settings.anonymization_hash_salt.get_secret_value()
        self._erasures = Erasures(database, lake.storage, redis, self._salt, now)
        self._retained: date | None = None
        self._refreshed: datetime | None = None
        self._reached = False

    def waiting(self) -> list[str]:
        return [] if self._reached else ["postgres to answer for the first time"]

    def found_servers(self) -> None:
        self._reached = True

    def round(self) -> None:
        self._erasures.run()
        if not self._settings.etl_enabled:
            return
        now = self._now()
        if self._refreshed is None or now - self._refreshed >= USAGE_REFRESH:
            self._etl().refresh_usage()
            self._refreshed = now
        for day in days_due(now, self._settings.etl_schedule_hour, self._finished()):
            if not self._lake.keys("outcomes", [day]):
                continue
            started = time.monotonic()
            self._etl().run(day, PIPELINES, dry_run=False, say=_say)
            self._metrics.etl_duration.labels("etl").observe(time.monotonic() - started)
            self._metrics.etl_last_success.labels("etl").set(time.time())
        if is_due(now, self._settings.retention_schedule_hour, self._retained):
            Retention(self._settings, self._database, self._lake, now).run(dry_run=False, say=_say)
            compact(self._lake, settled_days(self._lake, now), self._settings.parquet_max_file_bytes, False, _say)
            self._retained = now.date()
            self._metrics.etl_last_success.labels("retention").set(time.time())

    def _etl(self) -> Etl:
        return Etl(self._settings, self._database, self._lake)

    def _finished(self) -> set[date]:
        query = select(etl_runs.c.date).where(etl_runs.c.pipeline == PIPELINES[-1], etl_runs.c.state == "done")
        with self._database.begin() as connection:
            return set(connection.execute(query).scalars())


def _say(line: str) -> None:
    log.info(line, extra={"action": "etl"})
