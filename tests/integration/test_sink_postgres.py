"""The Postgres sink against a real server: exactly once, through outages, and the operator's own SQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import psycopg
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy import Table, func, select, text

from runtime.database import Database, connect
from runtime.errors import Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from runtime.tables import inference_log, safety_incidents
from schemas.codes import Code
from schemas.messages import Outcome, SafetyMode, SafetyReport, Violation
from schemas.topics import OUTCOMES, dead_letter_topic
from sinks.flow import Flow
from sinks.marks import Buffer, Limits, Mark, Partition
from sinks.migrate import upgrade
from sinks.postgres import NAME, AnyRow, PostgresStore
from sinks.store import Fenced
from tests import factories as f
from tests.embedded import RunningServer, running
from tests.in_memory import InMemoryBroker
from tests.postgres_case import database
from tests.sink_case import consents, postgres_decoder

__all__ = ["database"]
PARTITION = Partition(OUTCOMES, 0)
WIDE = Limits(rows=1000, size_bytes=10**9, age_s=0.001)


@pytest.fixture
def settings(fresh_database: str) -> Settings:
    settings = Settings(_env_file=None, database_url=fresh_database)
    upgrade(settings)
    return settings


@pytest.fixture
def store(database: Database) -> PostgresStore:
    return PostgresStore(database, consents())


def record_of(outcome: Outcome, offset: int) -> Record:
    return f.record(outcome.SerializeToString(), offset=offset)


def write(store: PostgresStore, *outcomes: Outcome, mark: Mark | None = None) -> Mark:
    """One batch on top of the mark that the store has."""
    before = store.open(PARTITION) if mark is None else mark
    buffer = Buffer[AnyRow](before, before.next_offset, WIDE)
    for offset, outcome in enumerate(outcomes, start=before.next_offset):
        buffer.add(postgres_decoder()(record_of(outcome, offset)), 0)
    batch = buffer.batch()
    assert batch is not None
    store.write(PARTITION, batch)
    return batch.after


def count(database: Database, table: Table = inference_log) -> int:
    with database.begin() as connection:
        return connection.execute(select(func.count()).select_from(table)).scalar_one()


def test_rows_come_out_as_they_went_in(store: PostgresStore, database: Database) -> None:
    delivered = f.outcome(results_offset=1)
    refused = f.outcome(rejection=f.rejection(), results_offset=2)
    write(store, delivered, refused)
    with database.begin() as connection:
        rows = connection.execute(select(inference_log).order_by(inference_log.c.results_offset)).all()
    assert [str(row.id) for row in rows] == [delivered.row_id, refused.row_id]
    assert rows[0].action_vector == pytest.approx([0.01] * 7)
    assert (rows[0].created_at.timestamp() * 1000, rows[0].latency_total_ms) == (f.NOON_MS, 20)
    assert (rows[0].safety_flags["checks"]["range"], rows[0].validation_errors) == (0.95, None)
    assert (rows[1].validation_errors, rows[1].action_vector) == ({"instruction": "too_short"}, None)


def test_rows_and_mark_move_together_and_survive_a_restart(store: PostgresStore, database: Database) -> None:
    after = write(store, f.outcome(results_offset=4), f.outcome(results_offset=9))
    assert PostgresStore(database, consents()).open(PARTITION) == after == Mark(2, {"results": 9})


def test_a_batch_on_top_of_another_mark_is_refused_whole(store: PostgresStore, database: Database) -> None:
    before = store.open(PARTITION)
    write(store, f.outcome(results_offset=0))
    with pytest.raises(Fenced):
        write(store, f.outcome(results_offset=0), mark=before)
    assert count(database) == 1


def test_of_two_processes_with_one_mark_one_writes(store: PostgresStore, database: Database) -> None:
    before = store.open(PARTITION)
    results: list[str] = []

    def attempt() -> None:
        try:
            write(store, *(f.outcome(results_offset=n) for n in range(50)), mark=before)
            results.append("written")
        except Fenced:
            results.append("fenced")

    threads = [threading.Thread(target=attempt) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sorted(results), count(database)) == (["fenced", "written"], 50)


def test_a_failing_batch_leaves_neither_rows_nor_mark(store: PostgresStore, database: Database) -> None:
    before = store.open(PARTITION)
    with database.begin() as connection:
        connection.execute(text("ALTER TABLE sink_marks ADD CONSTRAINT stop CHECK (next_offset < 2)"))
    with pytest.raises(Exception, match="stop"):
        write(store, *(f.outcome(results_offset=n) for n in range(5)))
    assert (count(database), store.open(PARTITION)) == (0, before)


def test_incidents_are_written_beside_their_rows(store: PostgresStore, database: Database) -> None:
    report = f.safety_report(0.1, checks={"workspace": 0.1}, violations=[Violation(field="actions[0].dx", reason="r")])
    refused = f.outcome(rejection=f.rejection(Code.UNSAFE_ACTION, safety=report), results_offset=0)
    monitored = f.outcome(
        chunk=f.action_chunk(safety=f.safety_report(0.5, mode=SafetyMode.SAFETY_MODE_MONITOR)), results_offset=1
    )
    write(store, refused, monitored, f.outcome(results_offset=2))
    with database.begin() as connection:
        rows = connection.execute(select(safety_incidents).order_by(safety_incidents.c.safety_score)).all()
    assert [(row.action_taken, row.violation_type) for row in rows] == [("rejected", "workspace"), ("logged", "range")]
    assert rows[0].violation_details["violations"][0]["field"] == "actions[0].dx"
    assert str(rows[0].id) == refused.row_id
    assert rows[1].original_action["dim"] == 7


def test_the_operators_sql_runs_as_written(store: PostgresStore, database: Database, settings: Settings) -> None:
    now_ms = int(time.time() * 1000)
    fresh = f.request_summary(requested_at_ms=now_ms)
    unknown = f.request_summary(requested_at_ms=now_ms, robot_type="UNKNOWN")
    write(
        store,
        f.outcome(request=fresh, results_offset=0),
        f.outcome(request=unknown, rejection=f.rejection(), results_offset=1),
        f.outcome(request=fresh, rejection=f.rejection(), results_offset=2),
    )
    failures = """
        SELECT
            field,
            reason,
            COUNT(*) as failures
        FROM (
            SELECT
                jsonb_object_keys(validation_errors) as field,
                validation_errors->>jsonb_object_keys(validation_errors) as reason
            FROM inference_log
            WHERE validation_errors IS NOT NULL
        ) sub
        GROUP BY field, reason
        ORDER BY failures DESC;
    """
    quality = """
        SELECT
            COUNT(*) as total_inferences,
            COUNT(*) FILTER (WHERE robot_type != 'UNKNOWN') as valid_robot_type,
            COUNT(*) FILTER (WHERE safety_score >= 0.7) as passing_safety,
            COUNT(*) FILTER (WHERE instruction_embedding IS NOT NULL) as with_embeddings,
            AVG(safety_score) as avg_safety_score
        FROM inference_log
        WHERE created_at > NOW() - INTERVAL '24 hours';
    """
    with psycopg.connect(settings.database_url.get_secret_value(), autocommit=True) as connection:
        assert connection.execute(failures).fetchall() == [("instruction", "too_short", 2)]
        assert connection.execute(quality).fetchall() == [(3, 2, 1, 0, pytest.approx(0.95))]
        connection.execute(
            "CREATE INDEX CONCURRENTLY idx_inference_log_created_at\n  ON inference_log(created_at DESC);"
        )
        connection.execute(
            "CREATE INDEX CONCURRENTLY idx_inference_log_customer_id\n  ON inference_log(customer_id, created_at DESC);"
        )
        connection.execute("ANALYZE inference_log;")


@hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.text(max_size=200),
    long=st.sampled_from(["", "x" * 100_000, "\N{SNOWMAN}" * 5000]),
    score=st.floats(),
    number=st.integers(0, 2**64 - 1),
    values=st.lists(st.floats(width=32), min_size=4, max_size=4),
)
def test_postgres_takes_whatever_a_robot_says(
    store: PostgresStore, words: str, long: str, score: float, number: int, values: list[float]
) -> None:
    said = words + long
    summary = f.request_summary(
        request_id=said, robot_id=said, robot_type=said, model=said, instruction=said, episode_id=said, step=number,
        customer_id=words, consent_tier=said,
    )  # fmt: skip
    chunk = f.action_chunk(
        actions=f.matrix(2, 2, values),
        result=f.inference_result(seed=number, worker_id=said, chunk=f.matrix(2, 2, values)),
        safety=SafetyReport(score=score, modified=True, checks={said: score}, violations=[Violation(detail=said)]),
    )
    violations = [Violation(field=said, reason=said)]
    first = max(store.open(PARTITION).seen.get("results", -1), -1) + 1
    write(
        store,
        f.outcome(request=summary, chunk=chunk, results_offset=first),
        f.outcome(request=summary, rejection=f.rejection(said, violations=violations), results_offset=first + 1),
    )


class Running:
    """A flow over a broker in memory and a store on a real Postgres."""

    def __init__(self, database: Database, limits: Limits = WIDE) -> None:
        self.broker = InMemoryBroker({OUTCOMES: 1, dead_letter_topic(OUTCOMES): 1})
        self.metrics = Metrics()
        self.flow: Flow[AnyRow] = Flow(
            name=NAME,
            consumer=self.broker.consumer(NAME),
            topics=[OUTCOMES],
            decode=postgres_decoder(),
            store=PostgresStore(database, consents()),
            limits=limits,
            total_bytes=10**9,
            publisher=self.broker.publisher(),
            metrics=self.metrics,
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self.flow.run, args=(self._stopping,))

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stopping.set()
        self._thread.join()
        self.flow.drain(Deadline(10))
        self.flow.close(Deadline(1))

    def append(self, *outcomes: Outcome) -> None:
        publisher = self.broker.publisher()
        for outcome in outcomes:
            publisher.publish(OUTCOMES, outcome.SerializeToString(), key=b"robot-1", partition=0)

    def wait_read(self, number: int) -> None:
        labels = {"topic": OUTCOMES}
        value = self.metrics.registry.get_sample_value
        assert self.broker.wait_for(lambda: value("vla_records_consumed_total", labels) == number, timeout_s=30)

    def wait_committed(self, offset: int) -> None:
        assert self.broker.wait_for(lambda: self.broker.committed(NAME, OUTCOMES, 0) == offset, timeout_s=30)


@pytest.fixture
def own_postgres(own_layout: Layout) -> Iterator[tuple[RunningServer, Settings]]:
    """A server that the test itself kills."""
    postgres = Postgres(own_layout, {"fsync": "off"})
    with running(postgres, own_layout) as server:
        settings = Settings(_env_file=None, database_url=postgres.dsn)
        upgrade(settings)
        yield server, settings


@pytest.mark.slow
def test_a_postgres_that_dies_and_comes_back_costs_no_row(own_postgres: tuple[RunningServer, Settings]) -> None:
    server, settings = own_postgres
    database = connect(settings, "test", pool_size=1)
    with Running(database) as sink:
        sink.append(*(f.outcome(results_offset=n) for n in range(20)))
        sink.wait_committed(20)
        server.kill()
        sink.append(*(f.outcome(results_offset=n) for n in range(10, 50)))
        with pytest.raises(Unavailable):
            database.ping()
        server.start()
        sink.wait_committed(60)
    assert count(database) == 50
    database.close()


def test_a_stop_leaves_nothing_behind(database: Database) -> None:
    with Running(database, Limits(rows=10_000, size_bytes=10**9, age_s=1000)) as sink:
        sink.append(*(f.outcome(results_offset=n) for n in range(30)))
        sink.wait_read(30)
        assert count(database) == 0
    assert (count(database), sink.broker.committed(NAME, OUTCOMES, 0)) == (30, 30)
