"""The chain of a partition's files: names, marks, and that two writers never both succeed."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from runtime.errors import Fatal
from runtime.kafka import Record
from runtime.metrics import Metrics
from schemas.topics import OUTCOMES, accepted_topic
from sinks.arrow_schemas import SCHEMAS
from sinks.lake_rows import observation_entry, outcome_entry
from sinks.marks import Buffer, Limits, Mark, Partition
from sinks.parquet import ParquetStore
from sinks.parquet_files import file_key, newest_file, read_column, read_mark, start_of
from sinks.protection import Protection
from sinks.rows import Row
from sinks.storage import FolderStorage, StoredFile
from sinks.store import Fenced
from tests import factories as f
from tests.sink_case import SALT, consents, parquet_decoder, protection

PARTITION = Partition(OUTCOMES, 3)
WIDE = Limits(rows=1000, size_bytes=10**9, age_s=10)
DAY_MS = 24 * 3_600_000


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    return FolderStorage(tmp_path / "lake")


@pytest.fixture
def store(storage: FolderStorage) -> ParquetStore:
    return ParquetStore(storage, Metrics(), protection())


def outcome_record(offset: int, number: int | None = None, *, day: int = 0) -> Record:
    value = f.outcome(results_offset=offset if number is None else number).SerializeToString()
    return f.record(value, partition=3, offset=offset, timestamp_ms=f.NOON_MS + day * DAY_MS)


def write(store: ParquetStore, buffer: Buffer[Row], *records: Record) -> None:
    for record in records:
        buffer.add(outcome_entry(record), 0)
    while (batch := buffer.batch()) is not None:
        store.write(PARTITION, batch)
        buffer.written(batch, 0)


class ErasingWhileItProtects(Protection):
    """A customer has all erased at the moment in which its n-th row is made safe, or later."""

    def __init__(self, looks: int) -> None:
        super().__init__(consents(), SALT)
        self._looks = looks

    def may_stay(self, row: Row) -> bool:
        self._looks -= 1
        return self._looks >= 0


@pytest.mark.parametrize("looks", range(8))
def test_what_is_erased_while_a_file_is_made_is_not_in_it(storage: FolderStorage, looks: int) -> None:
    """Two rows are looked at three times each: before they are protected, before the file and behind it."""
    store = ParquetStore(storage, Metrics(), ErasingWhileItProtects(looks))
    write(store, Buffer[Row](Mark(), 0, WIDE), outcome_record(0), outcome_record(1))
    (file,) = storage.files("")
    rows = pq.read_table(io.BytesIO(storage.read(file.key, 0, file.size_bytes))).num_rows
    assert rows == (2 if looks >= 6 else 0)
    assert store.open(PARTITION).next_offset == 2


def test_names_sort_as_offsets_do() -> None:
    keys = [file_key("outcomes", "2026-11-23", PARTITION, start) for start in (0, 9, 10, 10**12)]
    assert keys == sorted(keys)
    assert [start_of(key) for key in keys] == [0, 9, 10, 10**12]
    assert keys[1] == "outcomes/date=2026-11-23/vla.outcomes.v1+3+0000000000000000009.parquet"


def test_a_partition_without_files_starts_at_nothing(store: ParquetStore) -> None:
    assert store.open(PARTITION) == Mark()


def test_the_mark_of_the_newest_file_is_where_the_chain_goes_on(store: ParquetStore, storage: FolderStorage) -> None:
    buffer = Buffer[Row](Mark(), 0, WIDE)
    write(store, buffer, outcome_record(0), outcome_record(1))
    write(store, buffer, outcome_record(2, 7))
    assert store.open(PARTITION) == Mark(3, {"results": 7})
    assert store.open(Partition(OUTCOMES, 1)) == Mark()
    assert [start_of(file.key) for file in storage.files("")] == [0, 2]


def test_a_partition_number_that_begins_with_another_is_told_apart(store: ParquetStore) -> None:
    write(store, Buffer[Row](Mark(), 0, WIDE), outcome_record(0))
    assert store.open(Partition(OUTCOMES, 31)) == Mark()


def test_of_two_writers_with_one_mark_one_is_fenced(store: ParquetStore) -> None:
    ours, theirs = (Buffer[Row](Mark(), 0, WIDE) for _ in range(2))
    for offset in (0, 1):
        ours.add(outcome_entry(outcome_record(offset)), 0)
    theirs.add(outcome_entry(outcome_record(0)), 0)
    batches = [buffer.batch() for buffer in (ours, theirs)]
    assert batches[0] is not None
    assert batches[1] is not None
    store.write(PARTITION, batches[0])
    with pytest.raises(Fenced):
        store.write(PARTITION, batches[1])
    assert store.open(PARTITION) == batches[0].after


def test_a_file_holds_one_day_and_the_next_day_goes_on_from_it(store: ParquetStore, storage: FolderStorage) -> None:
    write(store, Buffer[Row](Mark(), 0, WIDE), outcome_record(0), outcome_record(1, day=1), outcome_record(2, day=1))
    assert [file.key.split("/")[1] for file in storage.files("")] == ["date=2026-11-23", "date=2026-11-24"]
    assert store.open(PARTITION).next_offset == 3


def test_a_clock_set_back_over_midnight_does_not_hide_the_newest_file(store: ParquetStore) -> None:
    write(store, Buffer[Row](Mark(), 0, WIDE), outcome_record(0, day=1), outcome_record(1, day=0))
    assert store.open(PARTITION).next_offset == 2


def test_a_foreign_file_in_the_chain_is_named(storage: FolderStorage, store: ParquetStore) -> None:
    key = file_key("outcomes", "2026-11-23", PARTITION, 5)
    storage.create(key, b"not parquet at all")
    with pytest.raises(Fatal, match=r"000005\.parquet"):
        store.open(PARTITION)


def test_pyarrow_reads_the_dataset_as_it_lies(store: ParquetStore, storage: FolderStorage, tmp_path: Path) -> None:
    write(store, Buffer[Row](Mark(), 0, WIDE), outcome_record(0), outcome_record(1, day=1))
    table = ds.dataset(tmp_path / "lake" / "outcomes", partitioning="hive").to_table()
    assert table.column("results_offset").to_pylist() == [0, 1]
    assert table.column("date").to_pylist() == ["2026-11-23", "2026-11-24"]
    assert dict(table.column("safety_checks")[0].as_py()) == pytest.approx({"finite": 1.0, "range": 0.95})
    newest = newest_file(storage, "outcomes", PARTITION)
    assert newest is not None
    assert read_column(storage, newest, "results_offset") == [1]


def test_files_are_compressed_and_carry_statistics(store: ParquetStore, storage: FolderStorage) -> None:
    write(store, Buffer[Row](Mark(), 0, WIDE), outcome_record(4))
    (file,) = storage.files("outcomes/")
    metadata = pq.read_metadata(io.BytesIO(storage.read(file.key, 0, file.size_bytes)))
    column = metadata.row_group(0).column(0)
    assert (column.compression, column.is_stats_set) == ("ZSTD", True)
    assert read_mark(storage, file) == Mark(5, {"results": 4})


def test_observations_keep_pictures_byte_for_byte(store: ParquetStore, storage: FolderStorage) -> None:
    topic = accepted_topic(f.DEPLOYMENT)
    buffer = Buffer[Row](Mark(), 0, WIDE)
    buffer.add(parquet_decoder({topic: f.DEPLOYMENT})(f.accepted_record()), 0)
    batch = buffer.batch()
    assert batch is not None
    store.write(Partition(topic, 0), batch)
    (file,) = storage.files("observations/")
    (images,) = read_column(storage, file, "images")
    assert images[0]["data"] == f.jpeg()
    assert observation_entry(f.accepted_record(), f.DEPLOYMENT).row.keys() == set(SCHEMAS["observations"].names)


def test_metadata_of_a_file_is_read_without_its_content(store: ParquetStore, tmp_path: Path) -> None:
    reads: list[int] = []

    class Counting(FolderStorage):
        def read(self, key: str, start: int, length: int) -> bytes:
            reads.append(length)
            return super().read(key, start, length)

    topic = accepted_topic(f.DEPLOYMENT)
    buffer = Buffer[Row](Mark(), 0, WIDE)
    for offset in range(20):
        request = f.inference_request()
        request.images[0].data = random.Random(offset).randbytes(20_000)
        source = {"source": f"vla.requests.v1/0/{offset}"}
        buffer.add(observation_entry(f.accepted_record(request, offset=offset, headers=dict(source)), "d"), 0)
    batch = buffer.batch()
    assert batch is not None
    store.write(Partition(topic, 0), batch)
    counting = Counting(tmp_path / "lake")
    (file,) = counting.files("observations/")
    assert read_mark(counting, StoredFile(file.key, file.size_bytes)).next_offset == 20
    assert sum(reads) < file.size_bytes / 4
