"""Role `sink postgres`: every outcome becomes one row of inference_log, and an incident where it is one; embeddings,
feedback, episodes, consent and what operators did become rows of their own tables; usage is counted.

Rows and mark are written in one transaction that holds the mark's row: a repeat, a restart or a process that
lost its partition without knowing it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from runtime.consent import ConsentList
from runtime.database import Database, connect
from runtime.fleets.registry import with_registered_fleets
from runtime.kafka import Record
from runtime.settings import Settings
from runtime.tables import inference_log, safety_incidents, sink_marks
from schemas import headers as h
from schemas.card_files import load_cards
from schemas.cards import CardSet
from schemas.topics import (
    AUDIT,
    CONSENT,
    CONTROL,
    EMBEDDINGS,
    EPISODES,
    FEEDBACK,
    OUTCOMES,
    POSTGRES_GROUP,
    episodes_topic,
)
from sinks.audit import audited
from sinks.consent import ConsentView
from sinks.data_records import decode_consent, decode_embedding, decode_episode, decode_feedback
from sinks.data_rows import audit_row, consent_row, context_row, episode_row, feedback_row, pending_row, workspace_of
from sinks.data_store import DataRow, Kind, lock_partition, merge_pending, write_data
from sinks.marks import Batch, Entry, Limits, Mark, Partition
from sinks.outcomes import decode_outcome
from sinks.rows import CONSENTED, Row, incident_row, inference_row
from sinks.service import serve
from sinks.store import Fenced, Skip
from sinks.usage import count_usage

NAME = POSTGRES_GROUP
#: The one series of a partition: of outcomes the offset of the completion that each was made from, else the offset.
RESULTS_SERIES = "results"

_TOTAL_BYTES = 64 * 1024 * 1024
_BATCH_BYTES = 8 * 1024 * 1024

_COLUMNS = [column for column in inference_log.columns if column.name != "instruction_embedding"]
_JSON_COLUMNS = frozenset(column.name for column in _COLUMNS if isinstance(column.type, JSONB))
_NAMES = sql.SQL(", ").join(sql.Identifier(column.name) for column in _COLUMNS)
# The columns that this version knows, without the constraints of those that a newer schema may have.
_CREATE_INCOMING = sql.SQL(
    "CREATE TEMP TABLE IF NOT EXISTS incoming_inference_log ON COMMIT DELETE ROWS "
    "AS SELECT {} FROM inference_log WITH NO DATA"
).format(_NAMES)
_COPY_INCOMING = sql.SQL("COPY incoming_inference_log ({}) FROM STDIN").format(_NAMES)
_INSERT_INCOMING = sql.SQL(
    "INSERT INTO inference_log ({0}) SELECT {0} FROM incoming_inference_log ON CONFLICT (id) DO NOTHING RETURNING id"
).format(_NAMES)


@dataclass(frozen=True, slots=True)
class OutcomeRows:
    """What one outcome becomes."""

    inference: Row
    incident: Row | None

    @property
    def customer_id(self) -> str:
        return str(self.inference["customer_id"])

    @property
    def at_ms(self) -> int:
        """Broker's append time of the request."""
        at: datetime = self.inference["created_at"]
        return round(at.timestamp() * 1000)


AnyRow = OutcomeRows | DataRow


class PostgresStore:
    """Writes batches to Postgres. Raises Unavailable while it is away, Fenced where the mark is another.

    consents: rows that a customer had erased are left out, as of the moment of writing.
    """

    server = "postgres"

    def __init__(self, database: Database, consents: ConsentList, sink: str = NAME) -> None:
        self._database = database
        self._consents = consents
        self._sink = sink

    def ping(self) -> None:
        with self._database.begin() as connection:
            connection.execute(select(sink_marks.c.sink).limit(1))

    def dataset(self, topic: str) -> str:
        named = {EMBEDDINGS: Kind.EMBEDDING, FEEDBACK: Kind.FEEDBACK, CONSENT: Kind.CONSENT, AUDIT: Kind.AUDIT}
        named[CONTROL] = Kind.AUDIT
        if topic == OUTCOMES:
            return inference_log.name
        return named.get(topic, Kind.EPISODE).value

    def open(self, partition: Partition) -> Mark:
        first = {"sink": self._sink, "topic": partition.topic, "partition": partition.number}
        with self._database.begin() as connection:
            # The row must be there, so that a writer can hold it.
            connection.execute(
                insert(sink_marks).values(**first, next_offset=0, results_offset=-1).on_conflict_do_nothing()
            )
            return self._mark(connection, partition)

    def write(self, partition: Partition, batch: Batch[AnyRow]) -> None:
        with self._database.begin() as connection:
            found = self._mark(connection, partition, hold=True)
            if found != batch.before:
                raise Fenced(f"the mark is at {found.next_offset}, not at {batch.before.next_offset}")
            stays = [self._may_stay(row) for row in batch.rows]
            rows = [row for row, stay in zip(batch.rows, stays, strict=True) if stay]
            if partition.topic in (OUTCOMES, EMBEDDINGS):
                lock_partition(connection, partition.number)
            new = self._write_outcomes(connection, [row for row in rows if isinstance(row, OutcomeRows)])
            write_data(connection, [row for row in rows if isinstance(row, DataRow)])
            # What was erased before it was written was used all the same.
            erased = [row for row, stay in zip(batch.rows, stays, strict=True) if not stay]
            used = [*new, *(row for row in erased if isinstance(row, OutcomeRows))]
            count_usage(connection, [row.inference for row in used])
            after = batch.after
            connection.execute(
                update(sink_marks)
                .where(*self._is(partition))
                .values(next_offset=after.next_offset, results_offset=after.seen[RESULTS_SERIES])
            )

    def _may_stay(self, row: AnyRow) -> bool:
        # What was decided and done is kept for ever, erasures among it.
        if isinstance(row, DataRow) and row.kind in (Kind.CONSENT, Kind.AUDIT):
            return True
        return not self._consents.is_erased(row.customer_id, row.at_ms)

    def _write_outcomes(self, connection: Connection, rows: list[OutcomeRows]) -> list[OutcomeRows]:
        """Those that were not there yet."""
        if not rows:
            return []
        written = self._copy(connection, [row.inference for row in rows])
        merge_pending(connection, [row.inference["id"] for row in rows])
        incidents = [row.incident for row in rows if row.incident is not None]
        if incidents:
            connection.execute(insert(safety_incidents).on_conflict_do_nothing(), incidents)
        # An id twice in one batch is one row.
        return list({row.inference["id"]: row for row in rows if row.inference["id"] in written}.values())

    def _mark(self, connection: Connection, partition: Partition, *, hold: bool = False) -> Mark:
        query = select(sink_marks.c.next_offset, sink_marks.c.results_offset).where(*self._is(partition))
        row = connection.execute(query.with_for_update() if hold else query).one_or_none()
        if row is None:
            return Mark()
        return Mark(row.next_offset, {RESULTS_SERIES: row.results_offset} if row.results_offset >= 0 else {})

    def _is(self, partition: Partition) -> tuple[Any, ...]:
        columns = sink_marks.c
        return (
            columns.sink == self._sink,
            columns.topic == partition.topic,
            columns.partition == partition.number,
        )

    def _copy(self, connection: Connection, rows: list[Row]) -> set[Any]:
        """Ids of the rows that were new."""
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            cursor.execute(_CREATE_INCOMING)
            with cursor.copy(_COPY_INCOMING) as copy:
                for row in rows:
                    copy.write_row([_value(column.name, row[column.name]) for column in _COLUMNS])
            return {row[0] for row in cursor.execute(_INSERT_INCOMING)}


class Decoder:
    """A record of any of the sink's topics as its rows. Raises Poison."""

    def __init__(
        self, *, consents: ConsentList, cards: CardSet, fleet_of: Mapping[str, str], min_safety_score: float
    ) -> None:
        self._consents = consents
        self._cards = cards
        self._fleet_of = fleet_of
        self._min_safety_score = min_safety_score

    def __call__(self, record: Record) -> Entry[AnyRow]:
        if record.topic == OUTCOMES:
            outcome = decode_outcome(record)
            level = self._consents.level(outcome.request.customer_id)
            rows = OutcomeRows(inference_row(outcome, record, level), incident_row(outcome, self._min_safety_score))
            return _entry(record, rows, outcome.results_offset)
        return _entry(record, self._data(record), record.offset)

    def _data(self, record: Record) -> DataRow:
        at_ms = record.timestamp_ms
        if record.topic == EMBEDDINGS:
            found = decode_embedding(record)
            if found.consent_tier not in CONSENTED:
                raise Skip("consent")
            workspace = workspace_of(self._cards.embodiment(found.robot_type))
            row, vector = context_row(found, workspace), pending_row(found)
            return DataRow(Kind.EMBEDDING, found.customer_id, found.requested_at_ms, row, vector)
        if record.topic == FEEDBACK:
            said = decode_feedback(record)
            level = self._consents.level(said.customer_id)
            if self._consents.tier(said.customer_id, at_ms) == "none":
                said.ClearField("comment")
                said.ClearField("corrected")
            return DataRow(Kind.FEEDBACK, said.customer_id, at_ms, feedback_row(said, level, at_ms))
        if record.topic in (AUDIT, CONTROL):
            found_row = audited(record)
            return DataRow(Kind.AUDIT, found_row["customer_id"] or "", at_ms, found_row)
        if record.topic == CONSENT:
            consent = decode_consent(record)
            audit = audit_row(consent, deleted=record.value is None, offset=record.offset, at_ms=at_ms)
            return DataRow(Kind.CONSENT, consent.customer_id, at_ms, consent_row(consent, at_ms), audit)
        event = decode_episode(record, self._customer)
        if self._consents.tier(event.customer_id, at_ms) == "none":
            event.ClearField("task")
            event.ClearField("environment_type")
        level = self._consents.level(event.customer_id)
        return DataRow(Kind.EPISODE, event.customer_id, at_ms, episode_row(event, level, at_ms))

    def _customer(self, record: Record) -> str:
        return self._fleet_of.get(record.topic) or record.headers.get(h.CUSTOMER_ID, "")


def _entry(record: Record, row: AnyRow, number: int) -> Entry[AnyRow]:
    return Entry(
        offset=record.offset,
        row=row,
        series=RESULTS_SERIES,
        number=number,
        size_bytes=len(record.value or b""),
        timestamp_ms=record.timestamp_ms,
    )


def topics_of(settings: Settings) -> list[str]:
    """Everything that this sink reads."""
    return [OUTCOMES, EMBEDDINGS, FEEDBACK, EPISODES, *map(episodes_topic, settings.fleets), CONSENT, CONTROL, AUDIT]


def decoder_of(settings: Settings, consents: ConsentList) -> Decoder:
    return Decoder(
        consents=consents,
        cards=load_cards(settings.cards_dir),
        fleet_of={episodes_topic(fleet): fleet for fleet in settings.fleets},
        min_safety_score=settings.min_safety_score,
    )


def main(settings: Settings) -> int:
    """Run the role until it is told to stop; returns its exit status."""
    settings = with_registered_fleets(settings)
    database = connect(settings, NAME, pool_size=1)
    view = ConsentView(settings, f"{NAME}-{settings.role_instance}")
    return serve(
        settings,
        name=NAME,
        topics=topics_of(settings),
        decode=decoder_of(settings, view.consents),
        store=lambda metrics: PostgresStore(database, view.consents),
        close_store=database.close,
        consent=view,
        limits=Limits(rows=settings.sink_batch_size, size_bytes=_BATCH_BYTES, age_s=settings.sink_flush_interval_s),
        total_bytes=_TOTAL_BYTES,
    )


def _value(column: str, value: Any) -> Any:
    return Jsonb(value) if column in _JSON_COLUMNS and value is not None else value
