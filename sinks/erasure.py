"""Takes a customer's rows out of the lake, file by file, in place.

Each file keeps its key and the mark in its footer: the chain that a resuming sink reads stays whole. A file is
replaced at once, and one without such rows is left alone: killed at any point, it may simply begin again.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from runtime.anonymize import hashed
from sinks.arrow_schemas import SCHEMAS
from sinks.storage import Storage, StoredFile, StoredReader

_TIMES = ("requested_at", "at")


def erase_from_lake(
    storage: Storage, customer_id: str, before_ms: int, salt: str, datasets: Iterable[str] = tuple(SCHEMAS)
) -> dict[str, int]:
    """Dataset -> rows that were removed: of this customer, plain or hashed, appended up to then.

    Raises Unavailable while the storage is away.
    """
    ids = pa.array([customer_id, hashed(customer_id, salt)])
    return {
        dataset: sum(_erase(storage, file, ids, before_ms) for file in list(storage.files(f"{dataset}/")))
        for dataset in datasets
    }


def _erase(storage: Storage, file: StoredFile, ids: pa.Array, before_ms: int) -> int:
    with StoredReader(storage, file) as reader:
        parquet = pq.ParquetFile(reader)
        time = next(name for name in _TIMES if name in parquet.schema_arrow.names)
        who = parquet.read(columns=["customer_id", time])
        before = pa.scalar(datetime.fromtimestamp(before_ms / 1000, UTC), who.schema.field(time).type)
        goes = pc.and_(pc.is_in(who.column("customer_id"), value_set=ids), pc.less_equal(who.column(time), before))
        count = int(pc.sum(goes).as_py() or 0)
        if count == 0:
            return 0
        left = parquet.read().filter(pc.invert(goes))
    # The schema's metadata, the mark among it, comes with the table.
    sink = io.BytesIO()
    pq.write_table(left, sink, compression="zstd", write_statistics=True)
    storage.replace(file.key, sink.getvalue())
    return count
