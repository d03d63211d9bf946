"""What records of vla.audit.v1 and vla.control.v1 become in audit_log: pure mappings, and the statement that keeps
them."""

from __future__ import annotations

import uuid

from google.protobuf.message import DecodeError
from sqlalchemy import Connection
from sqlalchemy.dialects.postgresql import insert

from runtime.audit import event_of_control
from runtime.errors import Poison
from runtime.kafka import Record
from runtime.tenancy_tables import audit_log
from schemas.messages import AuditEvent, Control
from schemas.topics import CONTROL
from sinks.rows import Row, name, text, timestamp

#: 9999-12-31: later than this is no time that a database takes.
_MAX_TIME_MS = 253_402_214_400_000
_MOST_DETAILS = 32
_MAX_DETAIL = 1000


def audited(record: Record) -> Row:
    """The row of a record of either topic. Raises Poison."""
    event_id: uuid.UUID | None = None
    try:
        if record.topic == CONTROL:
            event = event_of_control(Control.FromString(record.value or b""), record)
        else:
            event = AuditEvent.FromString(record.value or b"")
            event_id = uuid.UUID(event.event_id)
    except (DecodeError, ValueError) as error:
        raise Poison("undecodable", f"this is no record of {record.topic}: {error}") from error
    at_ms = event.at_ms if 0 < event.at_ms < _MAX_TIME_MS else record.timestamp_ms
    return {
        "topic": record.topic,
        "partition": record.partition,
        "log_offset": record.offset,
        "event_id": event_id,
        "customer_id": name(event.customer_id) or None,
        "actor": text(event.actor, _MAX_DETAIL),
        "action": name(event.action),
        "target": text(event.target, _MAX_DETAIL),
        "origin": name(event.origin),
        "details": {name(k): text(event.details[k], _MAX_DETAIL) for k in sorted(event.details)[:_MOST_DETAILS]},
        "at": timestamp(at_ms),
    }


def write_audit(connection: Connection, rows: list[Row]) -> None:
    """In the transaction of the sink's mark; an event that was sent twice is kept once."""
    if rows:
        connection.execute(insert(audit_log).on_conflict_do_nothing(), rows)
