"""A backup is a folder: Postgres, Valkey, the weights of the models, and a manifest with the hash of each file.

Kafka and the lake are not in it: they are replicated stores of their own, and what a restored database lacks is read
from them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import inspect, text

from runtime.database import Database, connect
from runtime.errors import Fatal
from runtime.settings import Settings
from sinks.recovery import model_files, postgres_dump, valkey_dump
from sinks.recovery.model_files import MODELS, ModelFile, State, sha256_of, weights_in_use
from sinks.recovery.replacement import Replacement

Say = Callable[[str], None]

MANIFEST, POSTGRES, VALKEY = "manifest.json", "postgres.dump", "valkey.jsonl"
_NAME = "vlastream-backup"
_WHEN, _UNFINISHED = "%Y-%m-%dT%H%M%SZ", ".unfinished"
_DATED = re.compile(r"\d{4}-\d{2}-\d{2}T\d{6}Z")
#: No backup takes longer.
_LONGEST = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class StoredFile:
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    created_at: str
    #: Revision of the schema.
    revision: str
    valkey_keys: int
    #: Table -> rows, in the same snapshot as the dump.
    rows: dict[str, int]
    #: Path within the backup -> what it must be.
    files: dict[str, StoredFile] = field(default_factory=dict)
    #: Weights that were only hashed: path -> hash. They lie where the cards say.
    hashed_only: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises Fatal where there is no backup."""
        try:
            found = json.loads((folder / MANIFEST).read_text())
            files = {name: StoredFile(**entry) for name, entry in found.pop("files").items()}
            return cls(**found, files=files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise Fatal(f"{folder} is no backup: {error}") from error


def create(settings: Settings, folder: Path, *, copy_models: bool, say: Say) -> Manifest:
    """Write a backup into a new folder, whole or not at all. Raises Fatal, Unavailable."""
    if folder.exists():
        raise Fatal(f"{folder} exists: name a new folder for each backup")
    postgres_dump.check_installed()
    unfinished = folder.with_name(f"{folder.name}{_UNFINISHED}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Addresses of customers and the hashes of their keys are in it.
        unfinished.mkdir(mode=0o700)
        manifest = _write(settings, unfinished, copy_models=copy_models, say=say)
        unfinished.rename(folder)
    except OSError as error:
        raise Fatal(f"{folder} could not be written: {error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return manifest


def _write(settings: Settings, unfinished: Path, *, copy_models: bool, say: Say) -> Manifest:
    (unfinished / MODELS).mkdir()
    with _snapshot(settings) as (snapshot, rows, revision):
        postgres_dump.dump(settings, unfinished / POSTGRES, snapshot)
    say(f"Postgres: {sum(rows.values())} rows of {len(rows)} tables at revision {revision}")
    keys = valkey_dump.dump(settings, unfinished / VALKEY)
    say(f"Valkey: {keys} keys")
    hashed_only = {}
    for path, name in weights_in_use(settings):
        if copy_models:
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, unfinished / name)
        else:
            hashed_only[name] = sha256_of(path)
    say(f"models: {len(list(weights_in_use(settings)))} files {'copied' if copy_models else 'hashed'}")
    files = {
        str(path.relative_to(unfinished)): StoredFile(sha256_of(path), path.stat().st_size)
        for path in sorted(unfinished.rglob("*"))
        if path.is_file()
    }
    manifest = Manifest(
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        revision=revision,
        valkey_keys=keys,
        rows=rows,
        files=files,
        hashed_only=hashed_only,
    )
    (unfinished / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    return manifest


def dated(folder: Path, now: datetime) -> Path:
    """Where a backup of this time (UTC) belongs among those of a folder that are kept by their number."""
    return folder / now.strftime(_WHEN)


def drop_old(folder: Path, keep: int, now: datetime) -> Iterator[Path]:
    """Remove all backups of `dated` folders but the newest `keep`, and what attempts of long ago have left.

    Nothing else in the folder is touched. Yields what is gone.
    """
    whole = sorted(path for path in folder.iterdir() if _DATED.fullmatch(path.name) and (path / MANIFEST).is_file())
    attempts = [path for path in folder.iterdir() if _DATED.fullmatch(path.name.removesuffix(_UNFINISHED))]
    before = dated(folder, now - _LONGEST).name
    cut_off = [path for path in attempts if path.name.endswith(_UNFINISHED) and path.name < before]
    for path in [*whole[: max(len(whole) - keep, 0)], *sorted(cut_off)]:
        shutil.rmtree(path)
        yield path


def damage(folder: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with a backup's files."""
    for name, stored in manifest.files.items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        elif sha256_of(path) != stored.sha256:
            yield f"{name} has changed since the backup"


def models(settings: Settings, manifest: Manifest) -> list[ModelFile]:
    """The weights that a backup knows, beside those in use here. Raises Fatal where it names others' files."""
    stored = {name: file.sha256 for name, file in manifest.files.items()}
    return model_files.compare(settings, stored, manifest.hashed_only)


def model_notes(settings: Settings, manifest: Manifest) -> Iterator[str]:
    """Weights here that are not those of the backup."""
    for file in models(settings, manifest):
        if file.state is not State.SAME:
            place = f" ({file.target})" if file.target is not None else ""
            mended = ": `restore` puts it back" if file.held and file.state is State.MISSING else ""
            yield f"{file.name}{place}: {file.state}{mended}"


def rows_that_differ(settings: Settings, folder: Path, manifest: Manifest) -> list[str]:
    """Restore the dump into a database beside the one in use, count, and drop it: tables whose rows do not add up."""
    replacement = Replacement(settings)
    try:
        tried = replacement.create()
        postgres_dump.restore(tried, folder / POSTGRES)
        database = connect(tried, _NAME, pool_size=1, statement_timeout_s=None)
        try:
            found = _rows(database)
        finally:
            database.close()
    finally:
        replacement.discard()
    tables = sorted(manifest.rows.keys() | found.keys())
    return [name for name in tables if manifest.rows.get(name) != found.get(name)]


@contextmanager
def _snapshot(settings: Settings) -> Iterator[tuple[str, dict[str, int], str]]:
    """An exported snapshot, the rows of each table in it, and the schema's revision."""
    database = connect(settings, _NAME, pool_size=1, statement_timeout_s=None)
    try:
        with database.begin() as connection:
            connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            snapshot = str(connection.execute(text("SELECT pg_export_snapshot()")).scalar_one())
            names = inspect(connection).get_table_names()
            quoted = connection.dialect.identifier_preparer.quote
            rows = {
                name: int(connection.execute(text(f"SELECT count(*) FROM {quoted(name)}")).scalar_one())
                for name in names
            }
            revision = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
            yield snapshot, rows, str(revision)
    finally:
        database.close()


def _rows(database: Database) -> dict[str, int]:
    with database.begin() as connection:
        quoted = connection.dialect.identifier_preparer.quote
        return {
            name: int(connection.execute(text(f"SELECT count(*) FROM {quoted(name)}")).scalar_one())
            for name in inspect(connection).get_table_names()
        }
