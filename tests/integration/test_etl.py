"""A day's analytics: the same figures however often, and wherever it was killed; erasures and retention besides."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

from runtime.anonymize import hashed
from runtime.database import Database, connect
from runtime.errors import Fatal
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM
from sinks.etl.commands import PIPELINES, Etl, run_etl
from sinks.etl.erasures import SETTLED_AFTER, Erasures
from sinks.etl.server import Worker, only_one
from sinks.migrate import upgrade
from sinks.retention import Retention
from tests import factories as f
from tests.lake_case import LakeFolder, actions
from tests.postgres_case import contents, database, rows, sink
from tests.sink_case import SALT, consents

__all__ = ["database"]
DAY = date(2026, 11, 23)
#: What the ETL writes, and what differs from run to run in it.
WRITTEN = ("robot_performance_metrics", "instruction_analytics", "context_metadata")
WHEN = ("id", "updated_at")
TABLES = ("inference_log", "context_metadata", "feedback", "episodes", "instruction_analytics")


@pytest.fixture
def settings(fresh_database: str, tmp_path: Path) -> Settings:
    values: dict[str, Any] = {
        "database_url": fresh_database,
        "data_dir": tmp_path,
        "enable_s3_storage": False,
        "anonymization_hash_salt": SALT,
    }
    found = Settings(_env_file=None, **values)
    upgrade(found)
    return found


def unit(dim: int, axis: int, lean: float = 0.0) -> list[float]:
    """A unit vector along an axis, leaning towards the next one."""
    vector = np.zeros(dim)
    vector[axis], vector[axis + 1] = 1.0, lean
    return list(vector / np.linalg.norm(vector))


def lived(folder: LakeFolder, database: Database) -> dict[str, str]:
    """A day of two customers and one who allows nothing; what was asked, by name."""
    north: dict[str, Any] = {"customer": "north"}
    asked = {
        "first": folder.ask(step=0, **north, instruction="Pick up the red block!"),
        "again": folder.ask(step=4, **north, instruction="pick up the red  block", at_ms=f.NOON_MS + 1000),
        "refused": folder.ask(step=8, **north, refused="unsafe_action", at_ms=f.NOON_MS + 2000),
        "like it": folder.ask(step=0, **north, episode="e-2", instruction="pick up that red block"),
        "south": folder.ask(step=0, customer="south", robot="robot-2", instruction="push the blue block left"),
        "silent": folder.ask(step=0, customer="silent", robot="robot-3", tier="none"),
    }
    red, blue = 0, 10
    for name, axis, lean in (("first", red, 0.0), ("again", red, 0.0), ("like it", red, 0.1), ("south", blue, 0.0)):
        image = unit(IMAGE_EMBEDDING_DIM, axis)
        folder.embed(asked[name], instruction=unit(INSTRUCTION_EMBEDDING_DIM, axis, lean), image=image)
    folder.end(success=True, customer="north")
    folder.end(success=False, customer="south", robot="robot-2")
    folder.correct(asked["first"], actions(2), customer="north")
    folder.write()
    sink(database, folder.allowed, folder.appended)
    return asked


@pytest.fixture
def folder(tmp_path: Path) -> LakeFolder:
    return LakeFolder(tmp_path / "lake")


def etl(settings: Settings, database: Database, folder: LakeFolder, *pipelines: str, dry_run: bool = False) -> None:
    Etl(settings, database, folder.lake).run(DAY, pipelines or PIPELINES, dry_run=dry_run, say=lambda line: None)


# --- the pipelines


def test_figures_of_a_day_by_customer_robot_type_and_model(
    settings: Settings, database: Database, folder: LakeFolder
) -> None:
    lived(folder, database)
    etl(settings, database, folder)
    found = {row["customer_id"]: row for row in rows(database, "SELECT * FROM robot_performance_metrics")}
    assert found.keys() == {"north", "south", "silent"}
    north = found["north"]
    assert (north["total_inferences"], north["successful_inferences"], north["safety_rejections"]) == (4, 3, 1)
    assert north["success_rate"] == 0.75
    assert (north["tasks_judged"], north["task_success_rate"]) == (1, 1.0)
    assert north["failure_patterns"] == {"unsafe_action": 1}
    assert north["avg_latency_ms"] == north["p50_latency_ms"] == north["p99_latency_ms"] > 0
    assert north["action_statistics"]["max"] == pytest.approx([0.007] * 7)
    assert {each["instruction"] for each in north["top_instructions"]} >= {"Pick up the red block!"}
    assert found["silent"]["top_instructions"] == []


def test_instructions_are_merged_by_what_they_say_and_marked_where_they_mean_the_same(
    settings: Settings, database: Database, folder: LakeFolder
) -> None:
    lived(folder, database)
    etl(settings, database, folder)
    found = {row["instruction"]: row for row in rows(database, "SELECT * FROM instruction_analytics")}
    merged = found["Pick up the red block!"]
    assert (merged["total_uses"], merged["customers"], merged["category"]) == (3, ["north"], "pick")
    assert merged["success_rate"] == pytest.approx(2 / 3)
    like_it = found["pick up that red block"]
    assert (like_it["is_duplicate"], like_it["similar_to"]) == (True, merged["instruction_hash"])
    assert found["push the blue block left"]["is_duplicate"] is False


def test_what_was_said_just_now_is_there_before_any_etl(database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    found = {row["instruction"]: row for row in rows(database, "SELECT * FROM instruction_analytics")}
    assert found["Pick up the red block!"]["total_uses"] == 2
    assert found["Pick up the red block!"]["instruction_embedding"] is not None
    assert found["push the blue block left"]["customers"] == ["south"]


def test_scenes_learn_how_their_episode_ended(settings: Settings, database: Database, folder: LakeFolder) -> None:
    asked = lived(folder, database)
    etl(settings, database, folder)
    found = {str(row["id"]): row for row in rows(database, "SELECT * FROM context_metadata")}
    assert found[asked["first"]]["success"] is True
    assert found[asked["south"]]["success"] is False
    assert asked["silent"] not in found


def test_the_usage_views_show_the_day(settings: Settings, database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    etl(settings, database, folder)
    usage = {row["customer_id"]: row["total_inferences"] for row in rows(database, "SELECT * FROM daily_usage")}
    assert usage == {"north": 4, "south": 1, "silent": 1}
    assert rows(database, "SELECT sum(total_inferences) AS n FROM monthly_usage")[0]["n"] == 6


def test_twice_is_as_good_as_once(settings: Settings, database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    etl(settings, database, folder)
    once = contents(database, WRITTEN, WHEN)
    etl(settings, database, folder)
    assert contents(database, WRITTEN, WHEN) == once


def test_a_dry_run_writes_nothing(settings: Settings, database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    before = contents(database, (*WRITTEN, "etl_runs"), WHEN)
    etl(settings, database, folder, dry_run=True)
    assert contents(database, (*WRITTEN, "etl_runs"), WHEN) == before


class Killed(BaseException):
    """As kill -9 would: nothing is caught, the connection goes, the transaction with it."""


def killed_at(database: Database, statement: int) -> Any:
    """Ends the process' work before its n-th statement."""
    left = [statement]

    def before(*arguments: object) -> None:
        if left[0] == 0:
            left[0] = -1
            raise Killed
        left[0] -= 1

    event.listen(database.engine, "before_cursor_execute", before)
    return lambda: event.remove(database.engine, "before_cursor_execute", before)


@pytest.mark.parametrize("statement", [0, 2, 3, 5, 8, 11, 14, 17, 20, 23])
def test_killed_anywhere_it_ends_as_if_undisturbed(
    settings: Settings, database: Database, folder: LakeFolder, statement: int
) -> None:
    lived(folder, database)
    etl(settings, database, folder)
    undisturbed = contents(database, WRITTEN, WHEN)
    for table in ("robot_performance_metrics", "instruction_analytics", "etl_runs"):
        rows(database, f"DELETE FROM {table} RETURNING 1")
    rows(database, "UPDATE context_metadata SET success = NULL RETURNING 1")
    undo = killed_at(database, statement)
    with pytest.raises(Killed):
        etl(settings, database, folder)
    undo()
    etl(settings, database, folder)
    assert contents(database, WRITTEN, WHEN) == undisturbed
    assert {row["state"] for row in rows(database, "SELECT state FROM etl_runs")} == {"done"}


def test_the_command_reports_each_pipeline_and_knows_their_names(
    settings: Settings, database: Database, folder: LakeFolder
) -> None:
    lived(folder, database)
    said: list[str] = []
    assert run_etl(settings, day=DAY, pipelines=["performance"], dry_run=False, say=said.append) == 0
    assert "performance" in said[0]
    with pytest.raises(Fatal, match="there are performance, instructions, context, usage"):
        run_etl(settings, day=DAY, pipelines=["everything"], dry_run=False, say=said.append)


def test_ids_in_the_lake_are_hashes_and_the_figures_still_belong_to_their_customers(
    settings: Settings, database: Database, tmp_path: Path
) -> None:
    folder = LakeFolder(tmp_path / "lake", consents("partial"))
    lived(folder, database)
    assert {row["customer_id"] for row in folder.rows("outcomes")} == {
        hashed(name, SALT) for name in ("north", "south", "silent")
    }
    etl(settings, database, folder)
    found = rows(database, "SELECT customer_id FROM robot_performance_metrics")
    assert {row["customer_id"] for row in found} == {"north", "south", "silent"}


# --- erasure


class Cache:
    """What an erasure needs of Valkey."""

    def __init__(self, *keys: str) -> None:
        self.keys = set(keys)

    def scan_iter(self, match: str, count: int) -> list[str]:
        return [key for key in self.keys if key.startswith(match.removesuffix("*"))]

    def delete(self, *keys: str) -> int:
        self.keys -= set(keys)
        return len(keys)


def ask_for_erasure(database: Database, customer: str) -> None:
    rows(
        database,
        "INSERT INTO erasures (customer_id, erased_before, state, requested_at) "
        "VALUES (:customer, :before, 'pending', :before) RETURNING 1",
        customer=customer,
        before=datetime.fromtimestamp(f.NOON_MS / 1000, UTC) + timedelta(hours=1),
    )


def erase(database: Database, folder: LakeFolder, cache: Cache) -> int:
    later = datetime.fromtimestamp(f.NOON_MS / 1000, UTC) + timedelta(hours=1) + SETTLED_AFTER
    return Erasures(database, folder.storage, cache, SALT, lambda: later).run()  # type: ignore[arg-type] # its part


@pytest.mark.parametrize("level", ["none", "partial"])
def test_an_erased_customer_is_nowhere_and_the_others_are_untouched(
    settings: Settings, database: Database, tmp_path: Path, level: Any
) -> None:
    folder = LakeFolder(tmp_path / "lake", consents(level))
    lived(folder, database)
    etl(settings, database, folder)
    kept = {table: rows(database, f"SELECT * FROM {table} WHERE customer_id = 'south'") for table in TABLES[:4]}
    cache = Cache("vla:embedding:north:1", "vla:embedding:north:2", "vla:embedding:south:1")
    ask_for_erasure(database, "north")
    assert erase(database, folder, cache) == 1
    for table in (*TABLES[:4], "robot_performance_metrics"):
        assert rows(database, f"SELECT 1 FROM {table} WHERE customer_id = 'north'") == []
    assert rows(database, "SELECT 1 FROM instruction_analytics WHERE 'north' = ANY(customers)") == []
    gone = {"north", hashed("north", SALT)}
    for dataset in ("observations", "outcomes", "feedback", "episodes"):
        found = list(folder.rows(dataset))
        assert found or dataset == "feedback"
        assert not gone & {row["customer_id"] for row in found}
    assert cache.keys == {"vla:embedding:south:1"}
    assert {t: rows(database, f"SELECT * FROM {t} WHERE customer_id = 'south'") for t in TABLES[:4]} == kept
    (asked,) = rows(database, "SELECT * FROM erasures")
    assert asked["state"] == "done"
    assert (asked["removed"]["lake"]["outcomes"], asked["removed"]["postgres"]["inference_log"]) == (4, 4)
    assert asked["removed"]["redis"] == 2
    assert erase(database, folder, cache) == 0


def test_after_an_erasure_the_sink_goes_on_where_it_was(database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    ask_for_erasure(database, "north")
    erase(database, folder, Cache())
    folder.ask(step=1, customer="north", at_ms=f.NOON_MS + 2 * 3_600_000)
    folder.ask(step=1, customer="south", at_ms=f.NOON_MS + 2 * 3_600_000)
    folder.write()
    sink(database, folder.allowed, folder.appended)
    assert len(list(folder.rows("outcomes"))) == 4
    assert len(rows(database, "SELECT 1 FROM inference_log")) == 4


def test_an_erasure_that_was_killed_begins_again(database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    ask_for_erasure(database, "north")
    undo = killed_at(database, 4)
    with pytest.raises(Killed):
        erase(database, folder, Cache())
    undo()
    assert rows(database, "SELECT state FROM erasures") == [{"state": "pending"}]
    assert erase(database, folder, Cache()) == 1
    assert rows(database, "SELECT 1 FROM inference_log WHERE customer_id = 'north'") == []


# --- retention


def retain(settings: Settings, database: Database, folder: LakeFolder, days: int, **changes: Any) -> list[str]:
    said: list[str] = []
    now = datetime.combine(DAY, datetime.min.time(), UTC) + timedelta(days=days)
    Retention(settings.model_copy(update=changes), database, folder.lake, now).run(dry_run=False, say=said.append)
    return said


def test_rows_stay_until_their_time_is_over(settings: Settings, database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    retain(settings, database, folder, 90)
    assert len(rows(database, "SELECT 1 FROM inference_log")) == 6
    retain(settings, database, folder, 91)
    assert rows(database, "SELECT 1 FROM inference_log") == []
    assert rows(database, "SELECT 1 FROM feedback") == []
    assert len(rows(database, "SELECT 1 FROM safety_incidents")) == 1
    assert len(rows(database, "SELECT 1 FROM instruction_analytics")) == 3


def test_a_day_that_the_lake_lacks_is_kept(settings: Settings, database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    for file in list(folder.storage.files("outcomes/")):
        folder.storage.delete(file.key)
    said = retain(settings, database, folder, 91)
    assert any("not in the lake" in line for line in said)
    assert len(rows(database, "SELECT 1 FROM inference_log")) == 6


def test_for_ever_is_for_ever(settings: Settings, database: Database, folder: LakeFolder) -> None:
    lived(folder, database)
    retain(settings, database, folder, 10_000, raw_data_retention_days=-1, aggregated_data_retention_days=-1)
    assert len(rows(database, "SELECT 1 FROM inference_log")) == 6


def test_what_was_kept_with_a_consent_that_has_ended_goes(
    settings: Settings, database: Database, folder: LakeFolder
) -> None:
    lived(folder, database)
    rows(
        database,
        "INSERT INTO customer_data_consent VALUES ('north', 'full', 1, now(), '2026-11-24Z', true, true, true, null, "
        "null, now()) RETURNING 1",
    )
    retain(settings, database, folder, 2)
    found = rows(database, "SELECT instruction, instruction_embedding FROM inference_log WHERE customer_id = 'north'")
    assert found == [{"instruction": None, "instruction_embedding": None}] * 4
    assert {row["customer_id"] for row in folder.rows("observations")} == {"south"}


# --- the role


def test_one_of_two_processes_works_and_the_other_takes_over(settings: Settings, database: Database) -> None:
    other = connect(settings, "other", pool_size=2)
    with only_one(database) as first, only_one(other) as second:
        assert (first(), second()) == (True, False)
    with only_one(other) as second:
        assert second()
    other.close()


def test_the_role_does_what_is_due_and_nothing_twice(
    settings: Settings, database: Database, folder: LakeFolder
) -> None:
    lived(folder, database)
    night = datetime(2026, 11, 24, 2, 30, tzinfo=UTC)
    clock = [night - timedelta(hours=1)]
    worker = Worker(settings, database, folder.lake, Cache(), Metrics(), lambda: clock[0])  # type: ignore[arg-type] # all of Redis that it asks
    worker.round()
    assert rows(database, "SELECT 1 FROM etl_runs") == []
    assert rows(database, "SELECT sum(total_inferences) AS n FROM daily_usage") == [{"n": 6}]
    clock[0] = night
    worker.round()
    done = rows(database, "SELECT * FROM etl_runs ORDER BY pipeline")
    assert {(row["date"], row["state"]) for row in done} == {(DAY, "done")}
    assert len(done) == len(PIPELINES)
    clock[0] = night + timedelta(hours=3)
    worker.round()
    assert rows(database, "SELECT * FROM etl_runs ORDER BY pipeline") == done
