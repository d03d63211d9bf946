"""What a search for instructions filters by, on a real Postgres: the caller's own requests, and nobody else's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import SecretStr
from sqlalchemy import insert

from ingest_api.reading import PostgresReader
from runtime.data_tables import instruction_analytics
from runtime.database import Database, connect
from runtime.settings import Settings
from runtime.tables import inference_log
from schemas.instructions import instruction_hash
from sinks.migrate import upgrade
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER

OTHER = "customer-2"
NOW = datetime(2026, 11, 20, tzinfo=UTC)
SAID = "Pick up the red block"


@pytest.fixture
def database(fresh_database: str) -> Iterator[Database]:
    settings = Settings(_env_file=None, database_url=SecretStr(fresh_database))
    upgrade(settings)
    opened = connect(settings, "test", pool_size=2)
    yield opened
    opened.close()


def used(database: Database, customer: str, status: str, at: datetime, robot_type: str, said: str = SAID) -> None:
    row: dict[str, Any] = {
        "id": uuid.uuid4(), "request_id": "r", "customer_id": customer, "robot_id": "arm-1", "robot_type": robot_type,
        "model": "m", "instruction": said, "image_count": 1, "step": 0, "status": status, "http_status": 200,
        "latency_total_ms": 1.0, "consent_tier": "full", "source_topic": "t", "source_partition": 0,
        "source_offset": 0, "results_offset": 0, "outcome_partition": 0, "outcome_offset": 0, "created_at": at,
        "decided_at": at,
    }  # fmt: skip
    with database.begin() as connection:
        connection.execute(insert(inference_log).values(**row))


@pytest.fixture
def search(database: Database) -> Api:
    """Both customers said the same: the caller failed half of the time with an arm, the other never with a dog."""
    used(database, CUSTOMER, "success", NOW, "arm")
    used(database, CUSTOMER, "safety_rejected", NOW, "arm", "pick up, the RED block!")
    for day in range(-5, 6):
        used(database, OTHER, "success", NOW + timedelta(days=day), "dog")
    with database.begin() as connection:
        # As the sink sums over both of them.
        connection.execute(
            insert(instruction_analytics).values(
                instruction_hash=instruction_hash(SAID), instruction=SAID, category="pick",
                instruction_embedding=[1.0] + [0.0] * 383, total_uses=13, unique_customers=2,
                customers=[CUSTOMER, OTHER], success_rate=12 / 13, common_robots={"arm": 2, "dog": 11},
                first_seen=NOW - timedelta(days=5), last_seen=NOW + timedelta(days=5),
            )
        )  # fmt: skip
    return Api(reader=PostgresReader(database))  # type: ignore[arg-type] # a real one in the scripted one's place


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        ({}, True),
        ({"min_success_rate": 0.5}, True),
        ({"min_success_rate": 0.9}, False),
        ({"robot_type": "arm"}, True),
        ({"robot_type": "dog"}, False),
        ({"since": "2026-11-20T00:00:00Z"}, True),
        ({"since": "2026-11-22T00:00:00Z"}, False),
        ({"until": "2026-11-21T00:00:00Z"}, True),
        ({"until": "2026-11-18T00:00:00Z"}, False),
        ({"robot_type": "arm", "min_success_rate": 0.5, "since": "2026-11-19T00:00:00Z"}, True),
    ],
)
async def test_a_filter_goes_by_ones_own_requests(search: Api, filters: dict[str, Any], found: bool) -> None:
    async with search.client() as client:
        answer = await client.get("/v1/search/instructions", params={"q": "take the red one", **filters})
    assert answer.status_code == 200, answer.text
    assert [match["instruction"] for match in answer.json()["matches"]] == [SAID] * found
