"""Names, content and marks of the lake's Parquet files.

The files of a partition form a chain: each is named after the first offset that its predecessor does not
cover, and says in its footer where it ends. So two processes that believe to own a partition want to create the
same name, and the storage lets one of them. (With the end in the name too, both would succeed.)
"""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from runtime.errors import Fatal
from sinks.marks import Mark, Partition
from sinks.rows import Row
from sinks.storage import Storage, StoredFile, StoredReader

#: Key of the footer's metadata under which the mark stands.
MARK_KEY = b"vlastream.mark"
#: Wide enough for any offset, so that names sort as numbers do.
_OFFSET_DIGITS = 19
_SUFFIX = ".parquet"


def file_key(dataset: str, date: str, partition: Partition, start: int) -> str:
    """`<dataset>/date=<date>/<topic>+<partition>+<start>.parquet`"""
    return f"{_prefix(dataset, date, partition)}{start:0{_OFFSET_DIGITS}d}{_SUFFIX}"


def start_of(key: str) -> int:
    """The start offset in a key. Raises ValueError for a key that is not one of ours."""
    return int(key.rpartition("+")[2].removesuffix(_SUFFIX))


def encode(rows: list[Row], schema: pa.Schema, partition: Partition, start: int, mark: Mark) -> bytes:
    """A whole Parquet file: zstd, statistics, the mark in its footer."""
    footer = {
        "topic": partition.topic,
        "partition": partition.number,
        "start": start,
        "next_offset": mark.next_offset,
        "seen": dict(mark.seen),
    }
    table = pa.Table.from_pylist(rows, schema=schema.with_metadata({MARK_KEY: json.dumps(footer).encode()}))
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_statistics=True)
    return sink.getvalue()


def read_mark(storage: Storage, file: StoredFile) -> Mark:
    """The mark in a file's footer. Raises Fatal for a file that carries none."""
    try:
        with StoredReader(storage, file) as reader:
            footer = json.loads(pq.read_metadata(reader).metadata[MARK_KEY])
        return Mark(int(footer["next_offset"]), {str(k): int(v) for k, v in footer["seen"].items()})
    except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise Fatal(f"{file.key} is not a file of this sink: move it away ({error})") from error


def newest_file(storage: Storage, dataset: str, partition: Partition) -> StoredFile | None:
    """The last file of a partition's chain, None if there is none."""
    found = 0
    newest: StoredFile | None = None
    for folder in reversed(storage.folders(dataset)):
        files = list(storage.files(_prefix(dataset, folder.removeprefix("date="), partition)))
        if not files:
            continue
        # A broker's clock may be set back over midnight: the day before is looked at too.
        newest = max([file for file in (newest, files[-1]) if file is not None], key=lambda file: start_of(file.key))
        found += 1
        if found == 2:
            break
    return newest


def read_column(storage: Storage, file: StoredFile, column: str) -> list[Any]:
    """Every value of one column of a file."""
    with StoredReader(storage, file) as reader:
        values: list[Any] = pq.ParquetFile(reader).read(columns=[column]).column(column).to_pylist()
        return values


def _prefix(dataset: str, date: str, partition: Partition) -> str:
    return f"{dataset}/date={date}/{partition.topic}+{partition.number}+"
