"""Writes what is no outcome into Postgres: embeddings, context, feedback, episodes and consent.

All of it inside the transaction that holds the partition's mark, and idempotent by id besides.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert

from runtime.data_tables import (
    consent_audit,
    context_metadata,
    customer_data_consent,
    episodes,
    erasures,
    feedback,
    pending_embeddings,
)
from runtime.tables import inference_log
from sinks.audit import write_audit
from sinks.instruction_uses import count_uses
from sinks.rows import Row


class Kind(Enum):
    """What a record becomes; the value names the table that metrics speak of."""

    EMBEDDING = "embeddings"
    FEEDBACK = "feedback"
    EPISODE = "episodes"
    CONSENT = "customer_data_consent"
    AUDIT = "audit_log"


@dataclass(frozen=True, slots=True)
class DataRow:
    """`row` is the record's own; `other` a second one: a pending vector beside its context, an audit entry."""

    kind: Kind
    customer_id: str
    #: What an erasure goes by: the append time of the request, or of the record itself.
    at_ms: int
    row: Row
    other: Row | None = None


def write_data(connection: Connection, rows: Sequence[DataRow]) -> None:
    """Write the rows of one partition, in the order of its log."""
    by_kind = {kind: [row for row in rows if row.kind is kind] for kind in Kind}
    if found := by_kind[Kind.EMBEDDING]:
        _write_embeddings(connection, found)
    if found := by_kind[Kind.FEEDBACK]:
        connection.execute(insert(feedback).on_conflict_do_nothing(), [row.row for row in found])
    write_audit(connection, [row.row for row in by_kind[Kind.AUDIT]])
    for row in by_kind[Kind.EPISODE]:
        _write_episode(connection, row.row)
    for row in by_kind[Kind.CONSENT]:
        _write_consent(connection, row)


def merge_pending(connection: Connection, ids: Sequence[uuid.UUID]) -> None:
    """Give rows of inference_log the vectors that came before them. The partition's lock is held."""
    waiting = select(pending_embeddings.c.id).where(pending_embeddings.c.id.in_(ids))
    if not connection.execute(waiting.limit(1)).all():
        return
    connection.execute(
        update(inference_log)
        .where(inference_log.c.id == pending_embeddings.c.id, inference_log.c.id.in_(ids))
        .values(instruction_embedding=pending_embeddings.c.instruction_embedding)
    )
    merged = delete(pending_embeddings).where(pending_embeddings.c.id.in_(ids)).returning(pending_embeddings.c.id)
    count_uses(connection, connection.execute(merged).scalars().all())


def lock_partition(connection: Connection, number: int) -> None:
    """Until the end of the transaction: an outcome and its embedding lie in partitions of the same number, and are
    written by two transactions that must see each other."""
    connection.execute(select(func.pg_advisory_xact_lock(_LOCK_SPACE, number)))


#: First half of the locks' keys; any constant that nobody else uses.
_LOCK_SPACE = 0x656D6264


def _write_embeddings(connection: Connection, rows: Sequence[DataRow]) -> None:
    connection.execute(insert(context_metadata).on_conflict_do_nothing(), [row.row for row in rows])
    pending = [row.other for row in rows if row.other is not None]
    if not pending:
        return
    vectors = {row["id"]: row for row in pending}
    known = set(connection.execute(select(inference_log.c.id).where(inference_log.c.id.in_(vectors))).scalars())
    if known:
        connection.execute(
            update(inference_log)
            .where(inference_log.c.id == bindparam("row_id"))
            .values(instruction_embedding=bindparam("vector")),
            [{"row_id": row_id, "vector": vectors[row_id]["instruction_embedding"]} for row_id in known],
        )
        count_uses(connection, list(known))
    waiting = [row for row_id, row in vectors.items() if row_id not in known]
    if waiting:
        connection.execute(insert(pending_embeddings).on_conflict_do_nothing(), waiting)


def _write_episode(connection: Connection, row: Row) -> None:
    """A start and an end, in whichever order; what one does not say the other may."""
    new = insert(episodes).values(**row)
    said: dict[str, Any] = {
        name: func.coalesce(new.excluded[name], episodes.c[name])
        for name in ("task", "environment_type", "success", "started_at", "ended_at")
    }
    said["robot_type"] = func.coalesce(func.nullif(new.excluded.robot_type, ""), episodes.c.robot_type)
    connection.execute(new.on_conflict_do_update(index_elements=list(episodes.primary_key.columns), set_=said))


def _write_consent(connection: Connection, row: DataRow) -> None:
    new = insert(customer_data_consent).values(**row.row)
    changed = {name: new.excluded[name] for name in row.row if name != "customer_id"}
    connection.execute(new.on_conflict_do_update(index_elements=["customer_id"], set_=changed))
    connection.execute(insert(consent_audit).values(**(row.other or {})).on_conflict_do_nothing())
    before = row.row["erased_before"]
    if before is None:
        return
    asked = insert(erasures).values(
        customer_id=row.customer_id, erased_before=before, state="pending", requested_at=row.row["updated_at"]
    )
    connection.execute(
        asked.on_conflict_do_update(
            index_elements=["customer_id"],
            set_={
                "erased_before": asked.excluded.erased_before,
                "state": "pending",
                "requested_at": asked.excluded.requested_at,
                "finished_at": None,
            },
            # A record that is read again asks for nothing new.
            where=erasures.c.erased_before < asked.excluded.erased_before,
        )
    )
