"""Backups that cannot be relied on are told; rows from the lake are those that the sink wrote from the log."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from runtime.errors import Fatal, Unavailable
from runtime.kafka import Record
from runtime.settings import Settings
from schemas.codes import Code
from schemas.messages import SafetyMode, Stage
from sinks.arrow_schemas import OUTCOMES_DATASET, SCHEMAS
from sinks.lake_rows import outcome_entry
from sinks.recovery import postgres_dump
from sinks.recovery.backup import MANIFEST, Manifest, StoredFile, create, damage, dated, drop_old
from sinks.recovery.commands import STREAMED, restore_backup
from sinks.recovery.from_lake import entry_of
from sinks.rows import incident_row, inference_row
from tests import factories as f

_LATER = {"image_shape", "image_count"}


def _through_the_lake(record: Record) -> dict[str, Any]:
    """The outcome's row as DuckDB reads it from the sink's file."""
    table = pa.Table.from_pylist([outcome_entry(record).row], schema=SCHEMAS[OUTCOMES_DATASET])
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("outcomes", table)
    found = connection.execute("SELECT * FROM outcomes")
    names = [column[0] for column in found.description or []]
    (row,) = found.fetchall()
    return dict(zip(names, row, strict=True))


def _chunk(**changes: Any) -> dict[str, Any]:
    return {"chunk": f.action_chunk(**changes)}


_UNSAFE = f.rejection(Code.UNSAFE_ACTION, stage=Stage.STAGE_ACTION_GATE, safety=f.safety_report(0.2))
_KINDS: dict[str, dict[str, Any]] = {
    "delivered": {},
    "clamped": _chunk(
        safety=f.safety_report(0.8, modified=True, mode=SafetyMode.SAFETY_MODE_CLAMP),
        result=f.inference_result(chunk=f.matrix(values=[0.5] * 56)),
    ),
    "logged": _chunk(safety=f.safety_report(0.4, mode=SafetyMode.SAFETY_MODE_MONITOR)),
    "refused": {"rejection": f.rejection()},
    "unsafe": {"rejection": _UNSAFE},
    "not consented": {"request": f.request_summary(consent_tier="none")},
}


@pytest.mark.parametrize("kind", _KINDS)
def test_a_row_from_the_lake_is_the_row_that_the_sink_wrote_from_the_log(kind: str) -> None:
    outcome = f.outcome(**_KINDS[kind], results_offset=17)
    record = f.record(outcome.SerializeToString(), partition=2, offset=41)
    entry = entry_of(_through_the_lake(record), lambda customer: customer, 0.7)
    assert (entry.offset, entry.number) == (41, outcome.results_offset)
    wanted, made = inference_row(outcome, record, "none"), entry.row.inference
    assert set(made) == set(wanted) | {"model_revision", "worker_id", "batch_size", "seed"}
    for name in set(wanted) - _LATER:
        assert made[name] == wanted[name], name
    incident = incident_row(outcome, 0.7)
    assert (entry.row.incident is None) == (incident is None)
    if incident is not None and entry.row.incident is not None:
        for name in set(incident) - {"violation_details", "deployment"}:
            assert entry.row.incident[name] == incident[name], name


def _backup(folder: Path) -> Manifest:
    (folder / "postgres.dump").write_bytes(b"dump")
    stored = StoredFile("b8ee68b5b7e40fde6a9ff4b9b06ebbeecb1ff2a2eb1e45a8a1d7a5e0a1ddde35", 4)
    manifest = Manifest(created_at="t", revision="2", valkey_keys=0, rows={}, files={"postgres.dump": stored})
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest)))
    return manifest


def test_a_damaged_backup_is_told_and_never_restored(tmp_path: Path) -> None:
    manifest = _backup(tmp_path)
    assert Manifest.read(tmp_path) == manifest
    assert list(damage(tmp_path, manifest)) == ["postgres.dump has changed since the backup"]
    with pytest.raises(Fatal, match="is damaged"):
        restore_backup(
            Settings(_env_file=None),
            folder=tmp_path,
            replay=True,
            models_only=False,
            overwrite_models=False,
            say=print,
        )
    (tmp_path / "postgres.dump").unlink()
    assert list(damage(tmp_path, manifest)) == ["postgres.dump is missing"]


def test_a_folder_without_a_manifest_is_no_backup(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match="is no backup"):
        Manifest.read(tmp_path)


def test_keys_and_customers_are_not_taken_for_what_the_log_can_make() -> None:
    assert not STREAMED & {"customers", "api_keys"}


def test_of_backups_in_a_folder_the_newest_stay_and_nothing_else_is_touched(tmp_path: Path) -> None:
    now = datetime(2026, 11, 26, 1, 15, tzinfo=UTC)
    days = [dated(tmp_path, now - timedelta(days=age)) for age in range(4)]
    for path in days:
        path.mkdir()
        (path / MANIFEST).write_text("{}")
    underway, cut_off = f"{dated(tmp_path, now - timedelta(hours=2))}.unfinished", f"{days[2]}.unfinished"
    others = [tmp_path / "2026-11-25", tmp_path / "by-hand", Path(underway), tmp_path / "by-hand.unfinished"]
    for path in [*others, Path(cut_off)]:
        path.mkdir()
    assert list(drop_old(tmp_path, 2, now)) == [days[3], days[2], Path(cut_off)]
    assert sorted(tmp_path.iterdir()) == sorted([*days[:2], *others])
    assert list(drop_old(tmp_path, 2, now)) == []


def test_without_postgres_programs_a_backup_says_what_to_install_before_it_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres_dump, "_PACKAGE", "no_such_package")
    with pytest.raises(Fatal, match=r"pg_dump is not installed: install .*postgresql-client-18.*vlastream-operator"):
        create(Settings(_env_file=None), tmp_path / "backup", copy_models=False, say=print)
    assert list(tmp_path.iterdir()) == []


def test_programs_that_are_older_than_the_server_are_told_as_such(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "pg_dump"
    old.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "pg_dump (PostgreSQL) 15.14"; exit; fi\n'
        'echo "pg_dump: error: aborting because of server version mismatch" >&2\n'
        'echo "pg_dump: detail: server version: 18.4; pg_dump version: 15.14" >&2; exit 1\n'
    )
    old.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres_dump, "_PACKAGE", "no_such_package")
    with pytest.raises(Fatal, match=r"server version: 18.4; .*15.14; install the client programs of the server's"):
        postgres_dump.dump(Settings(_env_file=None), tmp_path / "file", "1-1")


def test_a_backup_that_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    nobody_there = Settings(_env_file=None, database_url="postgresql://a:b@127.0.0.1:9/c")
    with pytest.raises(Unavailable):
        create(nobody_there, tmp_path / "backups" / "one", copy_models=False, say=lambda text: None)
    assert list((tmp_path / "backups").iterdir()) == []


def test_a_folder_that_cannot_be_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fatal, match="could not be written"):
        create(Settings(_env_file=None), tmp_path / "file" / "one", copy_models=False, say=lambda text: None)


@pytest.mark.parametrize("text", ["", "[]", '"x"', "{}", '{"files": 3}', '{"files": {"a": {"more": 1}}}'])
def test_a_manifest_that_is_none_is_no_backup(tmp_path: Path, text: str) -> None:
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(Fatal, match="is no backup"):
        Manifest.read(tmp_path)
