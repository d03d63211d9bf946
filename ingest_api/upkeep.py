"""What an API process does besides answering: sends what waits in the outbox, and holds the counters to the log."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future

from sqlalchemy import func, select

from runtime.database import Database
from runtime.errors import VlastreamError
from runtime.limit_counter import LimitCounter
from runtime.outbox import drain
from runtime.publisher import PublisherPort
from runtime.tenancy_tables import usage_daily
from runtime.windows import first_day_of_month, month_of
from schemas import headers as h
from schemas.messages import AuditEvent
from schemas.topics import AUDIT

log = logging.getLogger(__name__)

_OUTBOX_S = 2.0
_QUOTAS_S = 30.0


class Upkeep:
    """Tasks of the event loop that `start` was called on. What fails is tried again at its next time."""

    def __init__(self, database: Database, publisher: PublisherPort, counter: LimitCounter | None) -> None:
        self._database = database
        self._publisher = publisher
        self._counter = counter
        self._tasks: list[asyncio.Task[None]] = []
        self._evicting = ""

    def start(self) -> None:
        self._tasks.append(asyncio.create_task(_again_and_again(_OUTBOX_S, self._send_outbox)))
        if self._counter is not None:
            self._tasks.append(asyncio.create_task(_again_and_again(_QUOTAS_S, self._raise_quotas)))
            self._tasks.append(asyncio.create_task(_again_and_again(_QUOTAS_S, self._watch_policy)))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._counter is not None:
            await self._counter.close()

    async def _send_outbox(self) -> None:
        """On a daemon thread, as the process does not wait for it at its end: its producer ends with it."""
        sent: Future[int] = Future()
        sent.set_running_or_notify_cancel()

        def run() -> None:
            try:
                sent.set_result(drain(self._database, self._publisher))
            except BaseException as error:
                sent.set_exception(error)

        threading.Thread(target=run, name="outbox", daemon=True).start()
        await asyncio.wrap_future(sent)

    async def _watch_policy(self) -> None:
        """Said once where the counters' server may forget them."""
        policy = await self._counter.evicting_policy() if self._counter is not None else ""
        if policy and policy != self._evicting:
            log.warning(
                "limits may be forgotten: their Valkey evicts keys (%s): set RATE_LIMIT_REDIS_URL to one with "
                "maxmemory-policy noeviction",
                policy,
                extra={"action": "limits_evictable"},
            )
        self._evicting = policy

    async def _raise_quotas(self) -> None:
        """A counter that Valkey lost stands again where the log says; what gates and other processes count adds up."""
        now_s = time.time()
        used = await asyncio.to_thread(used_this_month, self._database, now_s)
        if used and self._counter is not None:
            month = month_of(now_s)
            await self._counter.raise_to([(f"customer:{customer}", month, count) for customer, count in used.items()])


def used_this_month(database: Database, now_s: float) -> dict[str, int]:
    """Customer -> requests that count for the quota, by the log. Raises Unavailable."""
    columns = usage_daily.c
    counted = func.sum(columns.requests - columns.rate_limited)
    query = select(columns.customer_id, counted).where(columns.date >= first_day_of_month(now_s))
    with database.begin() as connection:
        rows = connection.execute(query.group_by(columns.customer_id).having(counted > 0))
        return {customer: int(count) for customer, count in rows}


def reporter(publisher: PublisherPort) -> Callable[[AuditEvent], None]:
    """Sends events that belong to no change in Postgres. An event that Kafka cannot take is in this process's log."""

    def report(told: AuditEvent) -> None:
        extra = {"action": told.action, "reason": told.target}
        log.warning("%s: %s from %s", told.action, told.target, told.origin, extra=extra)
        attributes = h.cloud_event(
            event_type="vla.audit.v1", event_id=told.event_id, source="ingest_api", now_s=told.at_ms / 1000
        )
        try:
            publisher.publish(
                AUDIT, told.SerializeToString(), key=told.customer_id.encode() or None, headers=h.encode(attributes)
            )
        except VlastreamError as error:
            log.warning("the audit log has no record of it: %s", error, extra=extra)

    return report


async def _again_and_again(pause_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except VlastreamError as error:
            log.info("later: %s", error, extra={"action": "upkeep"})
        except Exception:
            log.exception("upkeep failed", extra={"action": "upkeep"})
        await asyncio.sleep(pause_s)
