"""Sinks and ETL killed at random points: what is kept equals what an undisturbed run keeps, row by row."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from runtime.database import Database, connect
from runtime.kafka import build_producer
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from runtime.topic_admin import apply_topics
from schemas import headers as h
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM
from schemas.messages import Consent
from schemas.topics import CONSENT, OUTCOMES
from sinks.arrow_schemas import SCHEMAS
from sinks.etl.commands import PIPELINES, Etl
from sinks.lake_reader import Lake, open_lake
from sinks.migrate import upgrade
from tests import factories as f
from tests.cards import write_cards
from tests.embedded import empty_database, running
from tests.lake_case import LakeFolder, actions
from tests.postgres_case import contents, rows, sink
from tests.sink_case import SALT, consents
from tests.sink_process import ROOT, Role, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(280)]

DEPLOYMENT = "test-model-a"
DAY = date(2026, 11, 23)
TABLES = ("inference_log", "context_metadata", "feedback", "episodes", "instruction_analytics", "safety_incidents")
FIGURES = ("robot_performance_metrics", "instruction_analytics", "context_metadata")
#: What tells when a record was appended or a row written, and ids that the database makes.
OF_THE_MOMENT = ("at", "updated_at", "started_at", "ended_at")
REQUESTS = 120


@pytest.fixture
def kafka(own_layout: Layout) -> Iterator[str]:
    server = Kafka(own_layout)
    with running(server, own_layout):
        yield server.bootstrap


@pytest.fixture
def environment(kafka: str, fresh_database: str, tmp_path: Path) -> dict[str, str]:
    return {
        "KAFKA_BOOTSTRAP_SERVERS": kafka,
        "KAFKA_PARTITIONS": "1",
        "KAFKA_ACCEPTED_PARTITIONS": "1",
        "KAFKA_SESSION_TIMEOUT_MS": "3000",
        "DATABASE_URL": fresh_database,
        "ENABLE_S3_STORAGE": "false",
        "DATA_DIR": str(tmp_path),
        "ANONYMIZATION_HASH_SALT": SALT,
        "ANONYMIZATION_LEVEL": "none",
        "DEFAULT_CONSENT_TIER": "full",
        "CARDS_DIR": str(write_cards(tmp_path / "cards")),
        "PARQUET_FLUSH_INTERVAL_S": "0.3",
        "SINK_FLUSH_INTERVAL_S": "0.1",
        "SINK_BATCH_SIZE": "10",
        "LOG_FORMAT": "text",
    }


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    values: dict[str, Any] = {name.lower(): value for name, value in environment.items()}
    found = Settings(_env_file=None, **values)
    upgrade(found)
    apply_topics(found)
    return found


def unit(dim: int, axis: int) -> list[float]:
    return [float(number == axis) for number in range(dim)]


def live(folder: LakeFolder, rng: random.Random) -> None:
    """Episodes of three robots, feedback, embeddings before and after their rows, a customer who allows nothing."""
    waiting: list[str] = []
    for number in range(REQUESTS):
        robot = rng.randrange(3)
        customer = ("north", "north", "silent")[robot]
        row = folder.ask(
            step=number,
            robot=f"robot-{robot}",
            customer=customer,
            episode=f"e-{number // 30}",
            tier="none" if customer == "silent" else "full",
            at_ms=f.NOON_MS + 1000 * number,
            refused="unsafe_action" if number % 11 == 0 else "",
            instruction=("pick up the red block", "push the blue block left")[number % 2],
        )
        if customer == "silent":
            continue
        if number % 5 == 0:
            folder.correct(row, actions(1), customer=customer, robot=f"robot-{robot}")
        waiting.append(row)
        if len(waiting) > 3:
            embed(folder, waiting.pop(rng.randrange(len(waiting))))
        if number % 30 == 29:
            folder.end(success=bool(number % 4), robot=f"robot-{robot}", customer=customer, episode=f"e-{number // 30}")
    for row in waiting:
        embed(folder, row)
    said = Consent(customer_id="north", tier="full", version=1, who="north", at_ms=f.NOON_MS)
    folder.append(CONSENT, said.SerializeToString(), f.NOON_MS, "north")


def embed(folder: LakeFolder, row: str) -> None:
    asked = next(record for record in folder.appended if record.headers.get(h.ROW_ID) == row)
    axis = 1 if b"push" in (asked.value or b"") else 0
    vector = unit(INSTRUCTION_EMBEDDING_DIM, axis)
    folder.embed(row, instruction=vector, image=unit(IMAGE_EMBEDDING_DIM, axis))


def kept(database: Database, lake: Lake) -> dict[str, list[str]]:
    found = contents(database, TABLES, (*OF_THE_MOMENT, "log_offset"))
    for table in ("feedback", "instruction_analytics"):
        found |= contents(database, [table], ("id", "created_at", *OF_THE_MOMENT))
    for dataset in SCHEMAS:
        listed = lake.dataset(dataset).to_table().to_pylist()
        found[dataset] = sorted(str({k: v for k, v in row.items() if k not in OF_THE_MOMENT}) for row in listed)
    return found


def sizes(found: dict[str, list[str]]) -> dict[str, int]:
    return {name: len(listed) for name, listed in found.items()}


def undisturbed(folder: LakeFolder, database: Database) -> dict[str, list[str]]:
    """What the same records become where nothing ever breaks."""
    folder.write()
    sink(database, folder.allowed, folder.appended)
    return kept(database, folder.lake)


@pytest.mark.parametrize("seed", [1, 2])
def test_sinks_killed_at_random_points_keep_what_an_undisturbed_run_keeps(
    settings: Settings, environment: dict[str, str], postgres_server: Postgres, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    folder = LakeFolder(tmp_path / "undisturbed", consents(), DEPLOYMENT)
    live(folder, rng)
    publisher = Publisher(build_producer(settings, "traffic"), Metrics())
    roles = [Role(name, environment, tmp_path / f"{name}.log") for name in ("postgres", "parquet")]
    database = connect(settings, "test", pool_size=1)
    try:
        for role in roles:
            role.wait_ready()
        for start in range(0, len(folder.appended), 40):
            for record in folder.appended[start : start + 40]:
                publisher.publish(record.topic, record.value, key=record.key, headers=record.raw_headers, partition=0)
            publisher.flush(10)
            role = rng.choice(roles)
            role.wait_until(rng.uniform(0.0, 0.4))
            role.kill()
        lake = open_lake(settings)
        outcomes = sum(record.topic == OUTCOMES for record in folder.appended)
        with empty_database(postgres_server) as dsn:
            expecting = settings.model_copy(update={"database_url": type(settings.database_url)(dsn)})
            upgrade(expecting)
            other = connect(expecting, "expected", pool_size=1)
            expected = undisturbed(folder, other)
            other.close()
        assert len(expected["outcomes"]) == outcomes == REQUESTS
        wait_for(lambda: sizes(kept(database, lake)) == sizes(expected))
        found = kept(database, lake)
        # The one that was killed last may still be on its way to where it hears signals.
        for role in roles:
            role.wait_ready()
    finally:
        statuses = [role.stop() for role in roles]
        publisher.close(5)
        database.close()
    assert statuses == [0, 0]
    for name, content in expected.items():
        assert found[name] == content, name


@pytest.mark.parametrize("seed", [1])
def test_the_etl_killed_at_random_points_ends_as_if_undisturbed(
    settings: Settings, environment: dict[str, str], postgres_server: Postgres, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    database = connect(settings, "test", pool_size=1)
    folder = LakeFolder(tmp_path / "lake", consents(), DEPLOYMENT)
    live(folder, rng)
    folder.write()
    sink(database, folder.allowed, folder.appended)
    command = [sys.executable, "-m", "runtime.cli", "etl", "run", "--date", str(DAY)]
    env = {**environment, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    for _ in range(5):
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # Wherever it is by then; the whole run takes about three seconds.
        try:
            process.wait(rng.uniform(1.0, 3.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = contents(database, FIGURES, ("id", "updated_at"))
    database.close()
    with empty_database(postgres_server) as dsn:
        expecting = settings.model_copy(update={"database_url": type(settings.database_url)(dsn)})
        upgrade(expecting)
        other = connect(expecting, "expected", pool_size=2)
        sink(other, folder.allowed, folder.appended)
        Etl(expecting, other, folder.lake).run(DAY, PIPELINES, dry_run=False, say=lambda line: None)
        assert contents(other, FIGURES, ("id", "updated_at")) == found
        assert rows(other, "SELECT count(*) AS n FROM robot_performance_metrics")[0]["n"] == 2
        other.close()
