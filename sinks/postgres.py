"""Role `sink postgres`: every outcome becomes one row of inference_log, and an incident where it is one.

Rows and mark are written in one transaction that holds the mark's row: a repeat, a restart or a process that
lost its partition without knowing it changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb
from sqlalchemy import Connection, select, update
from sqlalchemy.dialects.postgresql import JSONB, insert

from runtime.database import Database, connect
from runtime.kafka import Record
from runtime.settings import Settings
from runtime.tables import inference_log, safety_incidents, sink_marks
from schemas.topics import OUTCOMES
from sinks.flow import Fenced
from sinks.marks import Batch, Entry, Limits, Mark, Partition
from sinks.outcomes import decode_outcome
from sinks.rows import Row, incident_row, inference_row
from sinks.service import serve

NAME = "sink-postgres"
#: The one series of vla.outcomes.v1: the offset of the completion that an outcome was made from.
RESULTS_SERIES = "results"

_TOTAL_BYTES = 64 * 1024 * 1024
_BATCH_BYTES = 8 * 1024 * 1024

_COLUMNS = [column for column in inference_log.columns if column.name != "instruction_embedding"]
_JSON_COLUMNS = frozenset(column.name for column in _COLUMNS if isinstance(column.type, JSONB))
_NAMES = sql.SQL(", ").join(sql.Identifier(column.name) for column in _COLUMNS)
_CREATE_INCOMING = "CREATE TEMP TABLE IF NOT EXISTS incoming_inference_log (LIKE inference_log) ON COMMIT DELETE ROWS"
_COPY_INCOMING = sql.SQL("COPY incoming_inference_log ({}) FROM STDIN").format(_NAMES)
_INSERT_INCOMING = sql.SQL(
    "INSERT INTO inference_log ({0}) SELECT {0} FROM incoming_inference_log ON CONFLICT (id) DO NOTHING"
).format(_NAMES)


@dataclass(frozen=True, slots=True)
class OutcomeRows:
    """What one outcome becomes."""

    inference: Row
    incident: Row | None


class PostgresStore:
    """Writes batches to Postgres. Raises Unavailable while it is away, Fenced where the mark is another."""

    server = "postgres"

    def __init__(self, database: Database, sink: str = NAME) -> None:
        self._database = database
        self._sink = sink

    def ping(self) -> None:
        with self._database.begin() as connection:
            connection.execute(select(sink_marks.c.sink).limit(1))

    def dataset(self, topic: str) -> str:
        return inference_log.name

    def open(self, partition: Partition) -> Mark:
        first = {"sink": self._sink, "topic": partition.topic, "partition": partition.number}
        with self._database.begin() as connection:
            # The row must be there, so that a writer can hold it.
            connection.execute(
                insert(sink_marks).values(**first, next_offset=0, results_offset=-1).on_conflict_do_nothing()
            )
            return self._mark(connection, partition)

    def write(self, partition: Partition, batch: Batch[OutcomeRows]) -> None:
        with self._database.begin() as connection:
            found = self._mark(connection, partition, hold=True)
            if found != batch.before:
                raise Fenced(f"the mark is at {found.next_offset}, not at {batch.before.next_offset}")
            self._copy(connection, [row.inference for row in batch.rows])
            incidents = [row.incident for row in batch.rows if row.incident is not None]
            if incidents:
                connection.execute(insert(safety_incidents).on_conflict_do_nothing(), incidents)
            after = batch.after
            connection.execute(
                update(sink_marks)
                .where(*self._is(partition))
                .values(next_offset=after.next_offset, results_offset=after.seen[RESULTS_SERIES])
            )

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

    def _copy(self, connection: Connection, rows: list[Row]) -> None:
        driver: Any = connection.connection.driver_connection
        with driver.cursor() as cursor:
            cursor.execute(_CREATE_INCOMING)
            with cursor.copy(_COPY_INCOMING) as copy:
                for row in rows:
                    copy.write_row([_value(column.name, row[column.name]) for column in _COLUMNS])
            cursor.execute(_INSERT_INCOMING)


def decode_row(record: Record, min_safety_score: float) -> Entry[OutcomeRows]:
    """The rows of a record of vla.outcomes.v1. Raises Poison."""
    outcome = decode_outcome(record)
    return Entry(
        offset=record.offset,
        row=OutcomeRows(inference_row(outcome, record), incident_row(outcome, min_safety_score)),
        series=RESULTS_SERIES,
        number=outcome.results_offset,
        size_bytes=len(record.value or b""),
        timestamp_ms=record.timestamp_ms,
    )


def main(settings: Settings) -> int:
    """Run the role until it is told to stop; returns its exit status."""
    database = connect(settings, NAME, pool_size=1)
    return serve(
        settings,
        name=NAME,
        topics=[OUTCOMES],
        decode=lambda record: decode_row(record, settings.min_safety_score),
        store=lambda metrics: PostgresStore(database),
        close_store=database.close,
        limits=Limits(rows=settings.sink_batch_size, size_bytes=_BATCH_BYTES, age_s=settings.sink_flush_interval_s),
        total_bytes=_TOTAL_BYTES,
    )


def _value(column: str, value: Any) -> Any:
    return Jsonb(value) if column in _JSON_COLUMNS and value is not None else value
