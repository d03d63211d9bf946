"""Records that belong to a change in Postgres: written in its transaction, sent to Kafka later by whoever is there.

So a change and its record are both there or neither is, though Kafka is away meanwhile. A record may be sent twice;
events carry ids, and of a compacted topic the last one holds.
"""

from __future__ import annotations

import socket
import threading
import time
from typing import Protocol

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert

from runtime.database import Database
from runtime.errors import Unavailable
from runtime.kafka import DELIVERY_TIMEOUT_S
from runtime.publisher import Delivered, PublisherPort
from runtime.settings import Settings
from runtime.tenancy_tables import outbox
from schemas import headers as h

#: First half of a lock's key; any constant that nobody else uses.
_LOCK = 0x6F757462
_AT_ONCE = 200
#: A producer looks once a second for records whose time is up, and tells of them a moment later.
_TIMEOUT_S = DELIVERY_TIMEOUT_S + 5.0


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name


def enqueue(connection: Connection, topic: str, key: str, message: Message, event_type: str) -> None:
    """In the transaction of the change that the record tells of."""
    value = message.SerializeToString()
    connection.execute(insert(outbox).values(topic=topic, key=key, event_type=event_type, value=value))


def drain(database: Database, publisher: PublisherPort) -> int:
    """Send what waits, in order, and forget it once the broker has it; how many were sent.

    Blocks until the producer has settled every record, more than DELIVERY_TIMEOUT_S where Kafka hangs: one that it
    still had could arrive after newer ones, which somebody else sends. Raises Unavailable where Postgres or Kafka is
    away, Retry where the producer is full: all of it waits on then.
    """
    with database.begin() as connection:
        # One at a time, so that records of one customer stay in order.
        if not connection.execute(select(func.pg_try_advisory_xact_lock(_LOCK))).scalar_one():
            return 0
        rows = connection.execute(select(outbox).order_by(outbox.c.id).limit(_AT_ONCE)).all()
        if not rows:
            return 0
        settled, failures = threading.Semaphore(0), []

        def report(where: Delivered | None, failure: Exception | None) -> None:
            if failure is not None:
                failures.append(failure)
            settled.release()

        handed_over = 0
        try:
            for row in rows:
                attributes = h.cloud_event(
                    event_type=row.event_type, event_id=str(row.id), source="outbox", now_s=row.created_at.timestamp()
                )
                publisher.publish(
                    row.topic, row.value, key=row.key.encode() or None, headers=h.encode(attributes), on_delivery=report
                )
                handed_over += 1
        finally:
            # Not before that is the lock anybody else's.
            end_s = time.monotonic() + _TIMEOUT_S
            for _ in range(handed_over):
                if not settled.acquire(timeout=max(end_s - time.monotonic(), 0.0)):
                    raise Unavailable("Kafka has not confirmed records of the outbox in time")
        if failures:
            raise Unavailable(f"Kafka did not take a record of the outbox: {failures[0]}")
        connection.execute(delete(outbox).where(outbox.c.id.in_([row.id for row in rows])))
        return len(rows)


def kafka_listens(settings: Settings, timeout_s: float = 0.5) -> bool:
    """Whether a server listens at one of the addresses: asked before a command waits for Kafka in vain."""
    for address in settings.kafka_bootstrap_servers.split(","):
        host, _, port = address.strip().rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s):
                return True
        except (OSError, ValueError):
            continue
    return False
