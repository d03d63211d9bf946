"""What each role does to the lake, through a door that allows its policy alone: all of it works, and nothing else."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from runtime.cli import main
from runtime.errors import Unavailable
from runtime.settings import Settings
from runtime.stack.s3 import S3Settings
from schemas.lake_access import DATASETS, LAKE_ROLES, lake_access_table, lake_policy
from sinks.arrow_schemas import SCHEMAS
from sinks.compaction import compact
from sinks.erasure import erase_from_lake
from sinks.lake_reader import open_lake
from sinks.storage import open_storage
from tests import factories as f
from tests.guarded_s3 import Door, guarded
from tests.integration.test_sink_parquet import Running, column, settings_of
from tests.sink_case import SALT

KEY = "outcomes/date=2026-11-24/vla.outcomes.v1+0+00000000000000000000.parquet"


@pytest.fixture
def owner(s3_settings: S3Settings) -> Settings:
    """Of a bucket that is there."""
    settings = settings_of(s3_settings, f"access-{uuid.uuid4().hex[:12]}")
    open_storage(settings).ping()
    return settings


@contextmanager
def as_role(role: str, owner: Settings) -> Iterator[tuple[Settings, Door]]:
    with guarded(owner.s3_endpoint, lake_policy(role, owner.s3_bucket)) as door:
        yield owner.model_copy(update={"s3_endpoint": door.endpoint}), door


def written(owner: Settings, outcomes: int) -> None:
    """As many outcomes, in files of seven at most."""
    sink = Running(open_storage(owner))
    sink.outcomes(*range(outcomes))
    sink.wait_written(outcomes, "outcomes")
    sink.stop()


def given(role: str) -> set[str]:
    return {action for s in lake_policy(role, "b")["Statement"] for action in s["Action"]}


def test_the_parquet_sink_needs_all_that_its_policy_allows_and_no_more(owner: Settings) -> None:
    with as_role("sink-parquet", owner) as (settings, door):
        storage = open_storage(settings)
        storage.ping()
        sink = Running(storage)
        sink.outcomes(*range(20))
        sink.observations(*range(5))
        sink.wait_written(20, "outcomes")
        sink.wait_written(5, "observations")
        sink.crash()
        # The next one finds where the chain ends.
        again = Running(storage, sink.broker)
        again.outcomes(*range(15, 30))
        assert sink.broker.wait_for(lambda: sink.broker.committed("sink-parquet", "vla.outcomes.v1", 0) == 35, 30)
        again.stop()
        assert column(storage, "outcomes", "results_offset") == list(range(30))
        assert door.refused == set()
        assert door.passed == given("sink-parquet")


def test_the_etl_needs_all_that_its_policy_allows_and_no_more(owner: Settings) -> None:
    written(owner, 30)
    with as_role("etl", owner) as (settings, door):
        lake = open_lake(settings)
        lake.storage.ping()
        days = lake.days("outcomes")
        connection = lake.duckdb(days)
        assert connection.execute("SELECT count(*) FROM outcomes").fetchone() == (30,)
        assert (
            compact(lake, days, 10**9, False, print).files_after < len(list(open_storage(owner).files("outcomes/"))) + 4
        )
        assert len(lake.keys("outcomes")) == 1
        far_ms = 4_000_000_000_000
        assert erase_from_lake(lake.storage, f.CUSTOMER, far_ms, SALT)["outcomes"] == 30
        assert door.refused == set()
        assert door.passed == given("etl")


@pytest.mark.parametrize("role", [access.role for access in LAKE_ROLES])
def test_a_role_reaches_nothing_beside_the_datasets_and_makes_no_bucket(owner: Settings, role: str) -> None:
    open_storage(owner).create("exports/dataset", b"of somebody")
    with as_role(role, owner) as (settings, door):
        storage = open_storage(settings)
        for attempt in (
            lambda: storage.read("exports/dataset", 0, 1),
            lambda: storage.create("exports/another", b"1"),
            lambda: storage.delete("exports/dataset"),
            open_storage(settings.model_copy(update={"s3_bucket": f"new-{uuid.uuid4().hex[:12]}"})).ping,
        ):
            with pytest.raises(Unavailable, match=r"403|AccessDenied|Forbidden"):
                attempt()
        assert door.passed == set()


def test_a_stolen_sink_replaces_and_deletes_nothing_of_what_was_written(owner: Settings) -> None:
    open_storage(owner).create(KEY, b"as it was")
    with as_role("sink-parquet", owner) as (settings, door):
        storage = open_storage(settings)
        with pytest.raises(Unavailable, match="AccessDenied"):
            storage.replace(KEY, b"changed")
        with pytest.raises(Unavailable, match="AccessDenied"):
            storage.delete(KEY)
        assert door.refused == {"s3:PutObject", "s3:DeleteObject"}
    assert open_storage(owner).read(KEY, 0, 100) == b"as it was"


def test_the_page_shows_the_table_of_the_code() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "security.md"
    assert lake_access_table() in page.read_text(), "put the output of `vlastream s3 access` into docs/security.md"


def test_the_datasets_are_those_of_the_lake() -> None:
    assert set(DATASETS) == set(SCHEMAS)


@pytest.mark.parametrize("role", [access.role for access in LAKE_ROLES])
def test_the_command_prints_the_policy_as_json(role: str) -> None:
    done = CliRunner().invoke(main, ["s3", "policy", role, "lake-of-ours"])
    assert done.exit_code == 0
    assert json.loads(done.output) == lake_policy(role, "lake-of-ours")
