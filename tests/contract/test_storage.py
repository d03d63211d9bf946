"""What the Parquet sink needs of a storage, asked of a folder and of a real S3 server alike."""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from runtime.errors import Unavailable
from runtime.settings import Settings
from runtime.stack.s3 import S3Settings
from sinks.storage import (
    AlreadyExists,
    FolderStorage,
    NotFound,
    S3Storage,
    Storage,
    StoredFile,
    StoredReader,
    build_s3_client,
    open_storage,
)


def s3_environment(s3: S3Settings, **changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "s3_endpoint": s3.endpoint,
        "s3_bucket": s3.bucket,
        "s3_access_key": s3.access_key,
        "s3_secret_key": s3.secret_key,
        **changes,
    }
    return Settings(_env_file=None, **fields)


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "folder":
        return FolderStorage(tmp_path / "lake")
    settings = s3_environment(request.getfixturevalue("s3_settings"), s3_bucket=f"contract-{uuid.uuid4().hex[:12]}")
    opened = open_storage(settings)
    assert isinstance(opened, S3Storage)
    opened.ping()
    return opened


def test_a_file_is_read_back_as_it_was_written(storage: Storage) -> None:
    storage.create("a/b+1.bin", b"0123456789")
    assert storage.read("a/b+1.bin", 0, 100) == b"0123456789"
    assert storage.read("a/b+1.bin", 3, 4) == b"3456"


def test_a_file_never_replaces_another(storage: Storage) -> None:
    storage.create("a/x", b"first")
    with pytest.raises(AlreadyExists):
        storage.create("a/x", b"second")
    assert storage.read("a/x", 0, 10) == b"first"


def test_of_many_who_create_one_file_at_once_one_wins(storage: Storage) -> None:
    def create(number: int) -> int | None:
        try:
            storage.create("a/x", f"writer {number}".encode() * 1000)
        except (AlreadyExists, Unavailable):
            # A server may also say "conflict, try again", which is no success either.
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(create, range(8)) if number is not None]
    assert len(winners) == 1
    assert storage.read("a/x", 0, 100_000) == f"writer {winners[0]}".encode() * 1000


def test_files_are_listed_by_prefix_in_the_order_of_their_keys(storage: Storage) -> None:
    for key in ("d/date=2/t+1+10", "d/date=1/t+1+9", "d/date=2/t+10+1", "d/date=2/t+1+9", "e/t+1+1"):
        storage.create(key, key.encode())
    assert [file.key for file in storage.files("d/date=2/t+1+")] == ["d/date=2/t+1+10", "d/date=2/t+1+9"]
    assert [file.key for file in storage.files("d/")][:1] == ["d/date=1/t+1+9"]
    assert len(list(storage.files(""))) == 5
    assert [file.size_bytes for file in storage.files("e/")] == [len("e/t+1+1")]


def test_folders_are_those_right_below(storage: Storage) -> None:
    for key in ("d/date=2/x", "d/date=1/x", "d/date=1/deep/y"):
        storage.create(key, b"1")
    assert storage.folders("d") == ["date=1", "date=2"]


def test_what_is_not_there_is_empty_or_not_found(storage: Storage) -> None:
    storage.ping()
    assert storage.folders("nothing") == []
    assert list(storage.files("nothing/")) == []
    with pytest.raises(NotFound):
        storage.read("nothing/x", 0, 1)


def test_a_stored_file_reads_like_a_file(storage: Storage) -> None:
    data = bytes(range(256)) * 40
    storage.create("a/x", data)
    with StoredReader(storage, StoredFile("a/x", len(data))) as reader:
        assert reader.seek(-10, io.SEEK_END) == len(data) - 10
        assert reader.read(100) == data[-10:]
        reader.seek(5)
        assert reader.read(3) == data[5:8]
        assert (reader.tell(), reader.read()) == (8, data[8:])


@pytest.fixture(params=["folder", "s3"])
def absent(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Storage]:
    """A storage that nobody serves: a folder below a file, and a port that nothing listens on."""
    if request.param == "folder":
        (tmp_path / "file").write_text("in the way")
        return lambda: FolderStorage(tmp_path / "file" / "lake")
    settings = Settings(
        _env_file=None,
        s3_endpoint="http://127.0.0.1:9",
        s3_access_key="a",
        s3_secret_key="b",
    )
    return lambda: S3Storage(build_s3_client(settings), "bucket")


def test_a_storage_that_is_away_is_unavailable(absent: Callable[[], Storage]) -> None:
    with pytest.raises(Unavailable):
        absent().ping()
    with pytest.raises(Unavailable):
        absent().create("a/x", b"1")


def test_without_s3_the_lake_is_a_folder(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, enable_s3_storage=False, data_dir=tmp_path)
    open_storage(settings).create("a", b"1")
    assert (tmp_path / "lake" / "a").read_bytes() == b"1"
