"""Makes large files of the lake's small ones, by day and partition, under the rules of the sink's chain.

The files of a partition and day are a stretch of its chain. Their rows go into the first one, whose footer then says
where the last one ended; after that the others are deleted. Killed in between, rows lie in two files until the next
run, which sees by the marks that they are covered; readers that must count each row once go by row_id.
"""

from __future__ import annotations

import io
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.settings import Settings
from sinks.arrow_schemas import SCHEMAS
from sinks.lake_reader import Lake, open_lake
from sinks.marks import Mark
from sinks.parquet_files import MARK_KEY, read_mark, start_of
from sinks.storage import Storage, StoredFile, StoredReader

log = logging.getLogger(__name__)

Say = Callable[[str], None]
#: Days that may still get files are left alone: a broker's clock may lag, and a sink's last batch with it.
SETTLED_AFTER = timedelta(days=2)


@dataclass(frozen=True, slots=True)
class Compacted:
    files_before: int = 0
    files_after: int = 0

    def __add__(self, other: Compacted) -> Compacted:
        return Compacted(self.files_before + other.files_before, self.files_after + other.files_after)


def run_compaction(settings: Settings, *, days: Sequence[date], dry_run: bool, say: Say) -> int:
    """Compact these days, or all that are settled; the exit status. Raises Unavailable."""
    lake = open_lake(settings)
    compact(lake, days or settled_days(lake, datetime.now(UTC)), settings.parquet_max_file_bytes, dry_run, say)
    return 0


def settled_days(lake: Lake, now: datetime) -> list[date]:
    return sorted({day for dataset in SCHEMAS for day in lake.days(dataset) if day <= now.date() - SETTLED_AFTER})


def compact(lake: Lake, days: Iterable[date], most_bytes: int, dry_run: bool, say: Say) -> Compacted:
    """Raises Unavailable while the storage is away; what was done stays done. most_bytes: of a resulting file."""
    total = Compacted()
    for day in days:
        for dataset in SCHEMAS:
            done = _day(lake.storage, f"{dataset}/date={day.isoformat()}/", most_bytes, dry_run)
            if done.files_before > done.files_after:
                say(f"{day}  {dataset:<14} {done.files_before:>6} files -> {done.files_after}")
            total += done
    return total


def _day(storage: Storage, folder: str, most_bytes: int, dry_run: bool) -> Compacted:
    chains: defaultdict[str, list[StoredFile]] = defaultdict(list)
    for file in storage.files(folder):
        chains[file.key.rpartition("+")[0]].append(file)
    total = Compacted()
    for chain in chains.values():
        stretches = _stretches(sorted(chain, key=lambda file: start_of(file.key)), most_bytes)
        total += Compacted(len(chain), len(stretches))
        for stretch in stretches if not dry_run else []:
            _merge(storage, stretch)
    return total


def _stretches(chain: Sequence[StoredFile], most_bytes: int) -> list[list[StoredFile]]:
    """Neighbours that fit into one file together."""
    stretches: list[list[StoredFile]] = []
    size = most_bytes + 1
    for file in chain:
        if size + file.size_bytes > most_bytes:
            stretches.append([])
            size = 0
        stretches[-1].append(file)
        size += file.size_bytes
    return stretches


def _merge(storage: Storage, stretch: Sequence[StoredFile]) -> None:
    if len(stretch) == 1:
        return
    first = stretch[0]
    mark, table = _read(storage, first)
    tables = [table]
    for file in stretch[1:]:
        # A run that was killed has this one's rows in the first file already.
        if start_of(file.key) < mark.next_offset:
            continue
        mark, table = _read(storage, file)
        tables.append(table)
    if len(tables) > 1:
        storage.replace(first.key, _encoded(tables, mark))
    for file in stretch[1:]:
        storage.delete(file.key)


def _read(storage: Storage, file: StoredFile) -> tuple[Mark, pa.Table]:
    mark = read_mark(storage, file)
    with StoredReader(storage, file) as reader:
        return mark, pq.ParquetFile(reader).read()


def _encoded(tables: Sequence[pa.Table], mark: Mark) -> bytes:
    metadata = dict(tables[0].schema.metadata or {})
    footer = json.loads(metadata[MARK_KEY])
    footer |= {"next_offset": mark.next_offset, "seen": dict(mark.seen)}
    merged = pa.concat_tables([table.replace_schema_metadata(None) for table in tables], promote_options="default")
    sink = io.BytesIO()
    schema = {**metadata, MARK_KEY: json.dumps(footer).encode()}
    pq.write_table(merged.replace_schema_metadata(schema), sink, compression="zstd", write_statistics=True)
    return sink.getvalue()
