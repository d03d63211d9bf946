"""Rows of Postgres as the sink's own decoder and store write them, without a broker in between."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import text

from runtime.consent import ConsentList
from runtime.database import Database, connect
from runtime.kafka import Record
from runtime.settings import Settings
from schemas.topics import CONSENT, EMBEDDINGS, EPISODES, FEEDBACK, OUTCOMES
from sinks.marks import Buffer, Limits, Partition
from sinks.postgres import AnyRow, PostgresStore
from sinks.store import Skip
from tests.sink_case import postgres_decoder

_TOPICS = (OUTCOMES, EMBEDDINGS, FEEDBACK, EPISODES, CONSENT)
_LIMITS = Limits(rows=50, size_bytes=10**9, age_s=1)


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    """That of the test's own fixture `settings`."""
    opened = connect(settings, "test", pool_size=4)
    yield opened
    opened.close()


def sink(database: Database, allowed: ConsentList, records: Iterable[Record]) -> None:
    """Write records from where the marks stand, topic by topic in the order of their first records."""
    store, decode = PostgresStore(database, allowed), postgres_decoder(allowed)
    by_topic: defaultdict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.topic in _TOPICS:
            by_topic[record.topic].append(record)
    for topic, found in by_topic.items():
        partition = Partition(topic, 0)
        mark = store.open(partition)
        buffer = Buffer[AnyRow](mark, mark.next_offset, _LIMITS)
        for record in found:
            try:
                buffer.add(decode(record), 0)
            except Skip:
                buffer.skip(record.offset)
        while (batch := buffer.batch()) is not None:
            store.write(partition, batch)
            buffer.written(batch, 0)


def rows(database: Database, statement: str, **values: Any) -> list[dict[str, Any]]:
    with database.begin() as connection:
        return [dict(row) for row in connection.execute(text(statement), values).mappings()]


def contents(database: Database, tables: Sequence[str], without: Sequence[str] = ()) -> dict[str, list[str]]:
    """Every row of these tables as text, sorted, without columns that tell when or under which id it was written."""
    found = {}
    for table in tables:
        listed = rows(database, f"SELECT * FROM {table}")
        found[table] = sorted(str({k: v for k, v in row.items() if k not in without}) for row in listed)
    return found
