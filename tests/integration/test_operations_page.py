"""The SQL of docs/operations.md, and the statements that operators already have, run as written on a lived day."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from runtime.database import Database, connect
from runtime.settings import Settings
from runtime.stack.postgres import Postgres
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM
from schemas.messages import Consent
from schemas.topics import CONSENT
from sinks.etl.commands import PIPELINES, Etl
from sinks.migrate import upgrade
from tests.embedded import empty_database
from tests.lake_case import LakeFolder, actions
from tests.postgres_case import sink
from tests.sink_case import SALT, consents

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
STATEMENTS = [
    statement.strip()
    for block in re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    for statement in block.split(";")
    if statement.strip()
]
#: As the requirement document has them, letter by letter.
CHECKLIST = {
    "indexes": """
SELECT tablename, indexname FROM pg_indexes
WHERE tablename IN ('instruction_analytics', 'context_metadata');
""",
    "instruction vectors": """
SELECT COUNT(*) FROM instruction_analytics WHERE instruction_embedding IS NOT NULL;
""",
    "image vectors": """
SELECT COUNT(*) FROM context_metadata WHERE image_embedding IS NOT NULL;
""",
    "failures": """
-- Check validation failure reasons
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
""",
    "quality": """
-- Overall data quality metrics
SELECT
    COUNT(*) as total_inferences,
    COUNT(*) FILTER (WHERE robot_type != 'UNKNOWN') as valid_robot_type,
    COUNT(*) FILTER (WHERE safety_score >= 0.7) as passing_safety,
    COUNT(*) FILTER (WHERE instruction_embedding IS NOT NULL) as with_embeddings,
    AVG(safety_score) as avg_safety_score
FROM inference_log
WHERE created_at > NOW() - INTERVAL '24 hours';
""",
    "index by time": """
CREATE INDEX CONCURRENTLY idx_inference_log_created_at
  ON inference_log(created_at DESC);
""",
    "index by customer": """
CREATE INDEX CONCURRENTLY idx_inference_log_customer_id
  ON inference_log(customer_id, created_at DESC);
""",
    "analyze": "ANALYZE inference_log;",
    "analyze instructions": "ANALYZE instruction_analytics;",
    "analyze context": "ANALYZE context_metadata;",
}


@pytest.fixture(scope="module")
def lived(postgres_server: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a database after a day: requests, refusals, feedback, episodes, consent, ETL."""
    folder = tmp_path_factory.mktemp("operations")
    with empty_database(postgres_server) as url:
        values: dict[str, Any] = {"database_url": url, "enable_s3_storage": False, "data_dir": folder}
        settings = Settings(_env_file=None, anonymization_hash_salt=SALT, **values)
        upgrade(settings)
        database = connect(settings, "test", pool_size=2)
        live(LakeFolder(folder / "lake", consents()), database, settings)
        database.close()
        yield url


def live(folder: LakeFolder, database: Database, settings: Settings) -> None:
    now_ms = int(time.time() * 1000) - 60_000
    asked = [folder.ask(step=step, at_ms=now_ms + step) for step in range(4)]
    folder.ask(step=4, at_ms=now_ms + 4, refused="unsafe_action")
    folder.ask(step=5, at_ms=now_ms + 5, refused="invalid_instruction", robot_type="UNKNOWN")
    folder.ask(step=0, at_ms=now_ms, tier="none", customer="says nothing", robot="robot-9")
    instruction = [1.0] + [0.0] * (INSTRUCTION_EMBEDDING_DIM - 1)
    image = [1.0] + [0.0] * (IMAGE_EMBEDDING_DIM - 1)
    for row in asked:
        folder.embed(row, instruction=instruction, image=image)
    folder.correct(asked[0], actions(2))
    folder.end(success=True)
    for version, erased_before_ms in enumerate([0, 1], 1):
        said = Consent(
            customer_id="customer-2",
            tier="full",
            version=version,
            who="an operator",
            at_ms=now_ms,
            erased_before_ms=erased_before_ms,
        )
        folder.append(CONSENT, said.SerializeToString(), now_ms, "customer-2")
    folder.write()
    sink(database, folder.allowed, folder.appended)
    day = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    Etl(settings, database, folder.lake).run(day, PIPELINES, dry_run=False, say=lambda line: None)


def run(url: str, statement: str) -> list[tuple[Any, ...]] | None:
    """Rows of a query, None for a statement that has none."""
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description is not None else None


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda text: " ".join(text.split())[:50])
def test_every_statement_of_the_page_answers_its_question(lived: str, statement: str) -> None:
    found = run(lived, statement)
    if statement.startswith("SELECT"):
        assert found, "no row: the question stays open"
        assert any(value is not None for value in found[0])


def test_the_page_answers_more_than_upkeep() -> None:
    assert sum(statement.startswith("SELECT") for statement in STATEMENTS) >= 15


def test_the_checklists_own_statements_run_unchanged(lived: str) -> None:
    answers = {name: run(lived, statement) for name, statement in CHECKLIST.items()}
    names = {name for _, name in answers["indexes"] or []}
    assert {"instruction_analytics_by_embedding", "context_metadata_by_embedding"} <= names
    assert answers["instruction vectors"] == [(1,)]
    assert answers["image vectors"] == [(4,)]
    assert answers["failures"] == [("instruction", "too_short", 2)]
    total, valid, passing, embedded, score = (answers["quality"] or [])[0]
    assert (total, valid, passing, embedded) == (7, 6, 5, 4)
    assert 0 < score < 1


def test_nothing_beyond_its_tier_stands_in_postgres(lived: str) -> None:
    (found,) = (
        run(
            lived,
            "SELECT instruction, instruction_embedding, instruction_category FROM inference_log "
            "WHERE customer_id = 'says nothing'",
        )
        or []
    )
    assert found == (None, None, None)
    for table in ("context_metadata", "feedback", "episodes", "pending_embeddings"):
        assert run(lived, f"SELECT count(*) FROM {table} WHERE customer_id = 'says nothing'") == [(0,)]
