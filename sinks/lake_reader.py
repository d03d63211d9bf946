"""The lake as a reader sees it: datasets of pyarrow and tables of DuckDB over the sink's files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import date

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow.fs import FileSystem, LocalFileSystem, S3FileSystem

from runtime.settings import Settings
from sinks.arrow_schemas import SCHEMAS
from sinks.storage import Storage, open_storage

#: Sums of floats depend on the order in which threads add; sums of millionths do not.
_MACROS = (
    "CREATE MACRO exact_sum(x) AS sum(CAST(round(x * 1e6) AS HUGEINT)) / 1e6",
    "CREATE MACRO exact_avg(x) AS sum(CAST(round(x * 1e6) AS HUGEINT)) / 1e6 / nullif(count(x), 0)",
)
_CONNECT_TIMEOUT_S, _REQUEST_TIMEOUT_S = 3, 20


class Lake:
    """Reads only. `storage` names the files, `filesystem` and `root` are how Arrow gets at them."""

    def __init__(self, storage: Storage, filesystem: FileSystem, root: str) -> None:
        self.storage = storage
        self._filesystem = filesystem
        self._root = root

    def days(self, dataset: str) -> list[date]:
        """UTC days that a dataset has files of, ascending: of the broker's append time of the records."""
        names = self.storage.folders(dataset)
        return [date.fromisoformat(name.removeprefix("date=")) for name in names if name.startswith("date=")]

    def keys(self, dataset: str, days: Iterable[date] | None = None) -> list[str]:
        """Files of a dataset, of these days or of all."""
        chosen = self.days(dataset) if days is None else sorted(set(days))
        folders = [f"{dataset}/date={day.isoformat()}/" for day in chosen]
        return [file.key for folder in folders for file in self.storage.files(folder)]

    def dataset(self, dataset: str, days: Iterable[date] | None = None) -> ds.Dataset:
        """A pyarrow dataset; one without rows where there are no files. Columns as in sinks.arrow_schemas."""
        schema = SCHEMAS[dataset]
        keys = self.keys(dataset, days)
        if not keys:
            return ds.dataset(pa.table({f.name: pa.array([], f.type) for f in schema}, schema=schema))
        paths = [f"{self._root}/{key}" for key in keys]
        return ds.dataset(paths, schema=schema, format="parquet", filesystem=self._filesystem)

    def duckdb(self, days: Iterable[date] | None = None) -> duckdb.DuckDBPyConnection:
        """A connection in which each dataset is a table of its own name; `exact_sum` and `exact_avg` are at hand."""
        chosen = None if days is None else list(days)
        connection = duckdb.connect()
        connection.execute("SET TimeZone = 'UTC'")
        for macro in _MACROS:
            connection.execute(macro)
        for name in SCHEMAS:
            connection.register(name, self.dataset(name, chosen))
        return connection

    def batches(self, dataset: str, days: Iterable[date] | None = None) -> Iterator[pa.RecordBatch]:
        yield from self.dataset(dataset, days).to_batches()


def open_lake(settings: Settings) -> Lake:
    """The lake that the settings name: the bucket, or the folder where ENABLE_S3_STORAGE is false."""
    storage = open_storage(settings)
    if not settings.enable_s3_storage:
        return Lake(storage, LocalFileSystem(), str((settings.data_dir / "lake").resolve()))
    return Lake(storage, s3_filesystem(settings), settings.s3_bucket)


def s3_filesystem(settings: Settings) -> S3FileSystem:
    """Arrow's own S3 client with the settings' server and keys."""
    scheme, _, endpoint = settings.s3_endpoint.rpartition("://")
    return S3FileSystem(
        access_key=settings.s3_access_key.get_secret_value() or None,
        secret_key=settings.s3_secret_key.get_secret_value() or None,
        region=settings.s3_region,
        endpoint_override=endpoint or None,
        scheme=scheme or "https",
        connect_timeout=_CONNECT_TIMEOUT_S,
        request_timeout=_REQUEST_TIMEOUT_S,
        **({"tls_ca_file_path": settings.s3_ca_bundle} if settings.s3_ca_bundle else {}),
    )
