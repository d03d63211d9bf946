"""`vlastream backup create|verify|restore` and `vlastream rebuild`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from runtime.data_tables import (
    consent_audit,
    context_metadata,
    customer_data_consent,
    episodes,
    erasures,
    etl_runs,
    feedback,
    instruction_analytics,
    pending_embeddings,
    robot_performance_metrics,
)
from runtime.database import Database, connect
from runtime.errors import Fatal
from runtime.settings import Settings
from runtime.tables import inference_log, metadata, safety_incidents, sink_marks
from runtime.tenancy_tables import usage_daily, usage_robots
from sinks.etl.commands import PIPELINES, Etl
from sinks.lake_reader import open_lake
from sinks.migrate import upgrade
from sinks.recovery import backup, model_files, postgres_dump, valkey_dump
from sinks.recovery.from_lake import LakeRows
from sinks.recovery.replacement import Replacement
from sinks.recovery.replay import LogReplay
from sinks.recovery.withdrawn import withdraw_again

Say = Callable[[str], None]

_NAME = "vlastream-rebuild"
#: What the log and the lake make again. Everything else (customers, keys) is in backups alone.
STREAMED = frozenset(
    table.name
    for table in (
        inference_log, safety_incidents, sink_marks, context_metadata, pending_embeddings, instruction_analytics,
        robot_performance_metrics, customer_data_consent, consent_audit, feedback, episodes, etl_runs, erasures,
        usage_daily, usage_robots,
    )
)  # fmt: skip


def create_backup(settings: Settings, *, folder: Path, copy_models: bool, keep: int | None, say: Say) -> int:
    """Write a backup. keep: into `folder` under its time, and then leave the newest so many there.

    Raises Fatal where the backup's folder exists, Unavailable while a server is away.
    """
    now = datetime.now(UTC)
    place = folder if keep is None else backup.dated(folder, now)
    manifest = backup.create(settings, place, copy_models=copy_models, say=say)
    size = sum(stored.size_bytes for stored in manifest.files.values())
    say(f"{place}: {len(manifest.files)} files, {size / 1e6:.1f} MB")
    if keep is not None:
        for path in backup.drop_old(folder, keep, now):
            say(f"{path}: removed, as {keep} are kept")
    return 0


def verify_backup(settings: Settings, *, folder: Path, files_only: bool, say: Say) -> int:
    """Check a backup's files, and restore it for trial; 1 where it cannot be relied on."""
    manifest = backup.Manifest.read(folder)
    faults = list(backup.damage(folder, manifest))
    if not faults and not files_only:
        wrong = backup.rows_that_differ(settings, folder, manifest)
        faults = [f"table {name} comes back with other rows" for name in wrong]
    for line in faults:
        say(f"damaged: {line}")
    for line in backup.model_notes(settings, manifest):
        say(f"note: {line}")
    if faults:
        return 1
    checked = "its files" if files_only else f"its files, and {sum(manifest.rows.values())} rows restored for trial"
    say(f"{folder} of {manifest.created_at} is sound: {checked}")
    return 0


def restore_backup(
    settings: Settings, *, folder: Path, replay: bool, models_only: bool, overwrite_models: bool, say: Say
) -> int:
    """Put a backup's database into use, brought up to now from the log, its keys into Valkey, and its weights back.

    The database that was in use stays beside it under another name. Weights come first: without room for them the
    database is not touched.
    """
    manifest = backup.Manifest.read(folder)
    if faults := list(backup.damage(folder, manifest)):
        raise Fatal(f"{folder} is damaged: {faults[0]}")
    model_files.place(folder, backup.models(settings, manifest), overwrite=overwrite_models, say=say)
    if models_only:
        return 0
    replacement = Replacement(settings)
    made = replacement.create()
    try:
        postgres_dump.restore(made, folder / backup.POSTGRES)
        upgrade(made)
        say(f"Postgres: {sum(manifest.rows.values())} rows of {manifest.created_at}")
        _take_over(settings, made, replacement, replay=replay, etl=False, say=say)
    except BaseException:
        replacement.discard()
        raise
    say(f"Valkey: {valkey_dump.restore(settings, folder / backup.VALKEY)} keys that have not expired")
    return 0


def rebuild(settings: Settings, *, keys_from: Path | None, say: Say) -> int:
    """Make the database anew from the log and the lake, beside whatever is left of it, and put it into use.

    keys_from: a backup whose customers and keys are taken. Without one there are none.
    """
    if keys_from is not None and (faults := list(backup.damage(keys_from, backup.Manifest.read(keys_from)))):
        raise Fatal(f"{keys_from} is damaged: {faults[0]}")
    replacement = Replacement(settings)
    made = replacement.create()
    try:
        upgrade(made)
        if keys_from is None:
            say("customers and keys are in no log: without --keys-from there are none")
        else:
            dump = keys_from / backup.POSTGRES
            held = set(postgres_dump.tables_in(made, dump)) - STREAMED
            # What others refer to comes first.
            kept = [table.name for table in metadata.sorted_tables if table.name in held]
            postgres_dump.restore_rows(made, dump, kept)
            say(f"from {keys_from}: {', '.join(kept)}")
        _take_over(settings, made, replacement, replay=True, etl=True, say=say)
    except BaseException:
        replacement.discard()
        raise
    return 0


def _take_over(
    settings: Settings, made: Settings, replacement: Replacement, *, replay: bool, etl: bool, say: Say
) -> None:
    """Bring the new database up to the log while the old one serves, then to its very end, then put it into use."""
    database = connect(made, _NAME, pool_size=2, statement_timeout_s=None)
    log = LogReplay(made, database) if replay else None
    try:
        if log is not None:
            log.open()
            _catch_up(made, database, log, say)
        if etl:
            _add_up(made, database, say)
        # From here on nobody writes: a committed offset of the sink cannot pass what the second reading finds.
        old = replacement.retire(datetime.now(UTC))
        if old is not None:
            say(f"the database that was in use is now {old}: drop it when you are content")
        try:
            if log is not None:
                _catch_up(made, database, log, say)
                keys, suspended = withdraw_again(database)
                say(f"as the audit log says of after the backup: {keys} keys ended, {suspended} customers suspended")
            database.close()
            replacement.adopt()
        except BaseException:
            if old is not None:
                replacement.reinstate(old)
            raise
    finally:
        if log is not None:
            log.close()
        database.close()
    say(f"{replacement.name} is in use")


def _catch_up(settings: Settings, database: Database, log: LogReplay, say: Say) -> None:
    lake = LakeRows(
        lake=open_lake(settings),
        database=database,
        store=log.store,
        salt=settings.anonymization_hash_salt.get_secret_value(),
        fleets=settings.fleets,
        min_score=settings.min_safety_score,
    )
    read = {topic: rows for topic, rows in log.catch_up(lake.fill).items() if rows}
    if lake.written:
        say(f"from the lake: {lake.written} outcomes that the log no longer has")
    say(f"from the log: {', '.join(f'{rows} of {topic}' for topic, rows in read.items()) or 'nothing new'}")


def _add_up(settings: Settings, database: Database, say: Say) -> None:
    """The analytics of every day that is over, as the nightly ETL makes them."""
    lake = open_lake(settings)
    etl = Etl(settings, database, lake)
    today = datetime.now(UTC).date()
    for day in [day for day in lake.days("outcomes") if day < today]:
        etl.run(day, PIPELINES, dry_run=False, say=say)
    etl.refresh_usage()
