"""`vlastream export lerobot`: a LeRobotDataset v3.0 out of the lake, into a folder or a bucket."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path

from sqlalchemy import func, or_, select

from runtime.anonymize import hashed
from runtime.data_tables import customer_data_consent
from runtime.database import Database
from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.card_files import load_cards
from sinks.etl.commands import open_database
from sinks.export.dataset import Query, write_dataset
from sinks.export.writing import Target
from sinks.lake_reader import open_lake
from sinks.storage import FolderStorage, S3Storage, build_s3_client

Say = Callable[[str], None]


def export_lerobot(
    settings: Settings,
    *,
    since: date | None,
    until: date | None,
    robot_type: str | None,
    only_success: bool,
    out: str,
    say: Say,
) -> int:
    """Write the dataset, or finish one that was begun at `out`; the exit status.

    Days are UTC, of the requests, both included. Raises Fatal, Unavailable.
    """
    query = Query(since=since, until=until, robot_type=robot_type, only_success=only_success)
    database = open_database(settings)
    try:
        excluded = _excluded(database, settings.anonymization_hash_salt.get_secret_value())
    finally:
        database.close()
    summary = write_dataset(
        open_lake(settings), _target(settings, out), load_cards(settings.cards_dir), query, excluded
    )
    say(f"{out}: {summary[0]}")
    for line in summary[1:]:
        say(f"  {line}")
    return 0


def _excluded(database: Database, salt: str) -> set[str]:
    """Customers, plain and as the lake names them, whose consent does not allow training any more."""
    consent = customer_data_consent
    no = or_(~consent.c.can_use_for_training, consent.c.expires_at <= func.now())
    with database.begin() as connection:
        customers = connection.execute(select(consent.c.customer_id).where(no)).scalars().all()
    return {*customers, *(hashed(customer, salt) for customer in customers)}


def _target(settings: Settings, out: str) -> Target:
    if not out.startswith("s3://"):
        return Target(FolderStorage(Path(out).resolve()), "")
    bucket, _, prefix = out.removeprefix("s3://").partition("/")
    if not bucket:
        raise Fatal(f"--out {out} names no bucket: write s3://bucket/prefix")
    storage = S3Storage(build_s3_client(settings), bucket)
    storage.ping()
    return Target(storage, f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else "")
