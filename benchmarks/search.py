"""How fast and how exact search by meaning is: the API's own queries against 100,000 vectors of each kind.

    python -m benchmarks.search [--vectors 100000] [--queries 200] [--report FILE]

Vectors lie in clusters, as sentences and scenes do: unit vectors around random centres, two thirds of their length
common. Exact neighbours come from the same query without the index. Recall is of the ten nearest.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray
from pgvector.psycopg import register_vector
from sqlalchemy import Select, select

from benchmarks import machine
from ingest_api.reading import PostgresReader
from ingest_api.search import InstructionSearch, SceneSearch, asked_scene, instruction_query, nearest, scene_query
from runtime.data_tables import context_metadata
from runtime.database import connect
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM
from sinks.migrate import upgrade

CUSTOMER, OTHER = "customer-1", "customer-2"
P50_MS, RECALL = 10.0, 0.95
#: Own share of a customer whose rows are a tenth of the table.
_SMALL_SHARE = 0.1
_NEAREST = 10
#: Without these the planner has to compare with every row.
_EXACT = (("enable_indexscan", "off"), ("enable_bitmapscan", "off"))
_START_TIMEOUT_S = 120.0
_TABLES = (
    ("instruction_analytics", "instruction_embedding", INSTRUCTION_EMBEDDING_DIM),
    ("context_metadata", "image_embedding", IMAGE_EMBEDDING_DIM),
)


@dataclass(frozen=True, slots=True)
class Found:
    what: str
    p50_ms: float
    p99_ms: float
    recall: float

    @property
    def line(self) -> str:
        met = "met" if self.p50_ms < P50_MS and self.recall >= RECALL else "not met"
        return f"| {self.what} | {self.p50_ms:.1f} | {self.p99_ms:.1f} | {self.recall:.3f} | {met} |"


@dataclass(frozen=True, slots=True)
class Readers:
    """On a connection each: a server-side plan that was made without the index must not serve the API's query."""

    api: PostgresReader
    exact: PostgresReader


def clustered(count: int, dim: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(count, dim), unit length: a centre for each fifty of them."""
    centres = rng.standard_normal((max(1, count // 50), dim))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    own = rng.standard_normal((count, dim)) / math.sqrt(dim)
    vectors = centres[rng.integers(len(centres), size=count)] + 0.75 * own
    unit: NDArray[np.float32] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


def load(dsn: str, count: int, rng: np.random.Generator) -> None:
    """Fill both tables, then build their indexes."""
    now = datetime.now(UTC)
    with psycopg.connect(dsn, autocommit=True) as connection:
        register_vector(connection)
        for table, column, dim in _TABLES:
            connection.execute(f"DROP INDEX {table}_by_embedding")
            vectors = clustered(count, dim, rng)
            rows = _rows(table, vectors, now, rng)
            names = ", ".join(rows[0])
            with connection.cursor().copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(list(row.values()))
            began_s = time.monotonic()
            connection.execute("SET maintenance_work_mem = '512MB'")
            connection.execute(
                f"CREATE INDEX {table}_by_embedding ON {table} USING hnsw "
                f"({column} vector_cosine_ops) WITH (m = 16, ef_construction = 64)"
            )
            connection.execute(f"ANALYZE {table}")
            print(f"{table}: {count} rows; the index took {time.monotonic() - began_s:.0f} s", flush=True)


def _rows(table: str, vectors: NDArray[np.float32], now: datetime, rng: np.random.Generator) -> list[dict[str, Any]]:
    customers = np.where(rng.random(len(vectors)) < _SMALL_SHARE, CUSTOMER, OTHER)
    ids = [str(uuid.uuid4()) for _ in vectors]
    rows = []
    for number, (vector, customer, name) in enumerate(zip(vectors, customers, ids, strict=True)):
        at = now - timedelta(seconds=number)
        if table == "instruction_analytics":
            rows.append(
                {
                    "instruction_hash": name, "instruction": f"instruction {number}", "category": "pick",
                    "instruction_embedding": vector, "total_uses": 1, "unique_customers": 1,
                    # An array as Postgres reads one.
                    "customers": [str(customer)], "success_rate": 1.0, "common_robots": '{"arm": 1}',
                    "first_seen": at, "last_seen": at,
                }
            )  # fmt: skip
        else:
            rows.append(
                {
                    "id": name, "customer_id": str(customer), "robot_id": "robot-1", "robot_type": "arm",
                    "request_id": name, "lighting": "normal", "time_of_day": "morning", "success": True,
                    "image_embedding": vector, "image_model": "generated", "created_at": at,
                }
            )  # fmt: skip
    return rows


def measure(readers: Readers, what: str, queries: Sequence[Select[Any]], key: str) -> Found:
    taken_ms, hits, wanted = [], 0, 0
    for query in queries:
        began_s = time.perf_counter()
        approximate = nearest(readers.api, query, _NEAREST)
        taken_ms.append((time.perf_counter() - began_s) * 1000)
        exact = {row[key] for row in readers.exact.rows(query, _EXACT)[:_NEAREST]}
        hits += len(exact & {row[key] for row in approximate})
        wanted += len(exact)
    return Found(what, float(np.percentile(taken_ms, 50)), float(np.percentile(taken_ms, 99)), hits / wanted)


@contextmanager
def postgres(folder: Path) -> Iterator[str]:
    layout = Layout(folder)
    layout.create()
    component = Postgres(layout, {"shared_buffers": "1GB"})
    component.prepare(print)
    process = component.command().spawn(log=layout.log("postgres"), dies_by=component.stop_signal)
    try:
        end = time.monotonic() + _START_TIMEOUT_S
        while not component.is_ready():
            if time.monotonic() > end:
                raise SystemExit(f"Postgres did not start: see {layout.log('postgres')}")
            time.sleep(0.1)
        yield component.dsn
    finally:
        process.send_signal(component.stop_signal)
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    rng = np.random.default_rng(arguments.seed)
    here = machine.describe(("psycopg", "pgvector", "sqlalchemy"))
    with tempfile.TemporaryDirectory() as folder, postgres(Path(folder)) as dsn:
        values: dict[str, Any] = {"database_url": dsn}
        settings = Settings(_env_file=None, **values)
        upgrade(settings)
        load(dsn, arguments.vectors, rng)
        databases = [connect(settings, name, pool_size=1, statement_timeout_s=60.0) for name in ("api", "exact")]
        readers = Readers(*map(PostgresReader, databases))
        texts = clustered(arguments.queries, INSTRUCTION_EMBEDDING_DIM, np.random.default_rng(arguments.seed))
        results = []
        for customer, share in ((OTHER, 1 - _SMALL_SHARE), (CUSTOMER, _SMALL_SHARE)):
            said = [instruction_query(InstructionSearch(q="x", limit=_NEAREST), customer, list(v)) for v in texts]
            own = _own(readers.api, customer, arguments.queries)
            seen = [scene_query(SceneSearch(limit=_NEAREST), customer, row) for row in own]
            whose = f"a customer with {share:.0%} of the rows"
            # Once before, so that the index is in memory as it is after the first minute of a day.
            measure(readers, "", said[:20], "instruction")
            results.append(measure(readers, f"instructions, {whose}", said, "instruction"))
            measure(readers, "", seen[:20], "request_id")
            results.append(measure(readers, f"scenes, {whose}", seen, "request_id"))
            print("\n".join(found.line for found in results[-2:]), flush=True)
        for database in databases:
            database.close()
    text = "\n".join(
        [
            f"# Search by meaning in {arguments.vectors:,} vectors",
            "",
            f"Command: `python -m benchmarks.search`. {here.date}, {here.cores} cores shared with Postgres, Python",
            f"{here.python}, {here.system}. {arguments.queries} queries each, the API's own statements, HNSW with",
            "m 16, ef_construction 64, ef_search 100, iterative scan; clustered unit vectors.",
            "",
            f"Goal: p50 below {P50_MS:.0f} ms with recall@10 of at least {RECALL}.",
            "",
            "| search | p50 ms | p99 ms | recall@10 | goal |",
            "|---|---|---|---|---|",
            *(found.line for found in results),
            "",
        ]
    )
    print(text)
    if arguments.report is not None:
        arguments.report.write_text(text)


def _own(reader: PostgresReader, customer: str, count: int) -> list[dict[str, Any]]:
    """Any scenes of this customer, as the API looks one up by its request."""
    table = context_metadata.c
    query = select(table.request_id).where(table.customer_id == customer).order_by(table.id).limit(count)
    return [reader.rows(asked_scene(customer, row["request_id"]))[0] for row in reader.rows(query)]


if __name__ == "__main__":
    main()
