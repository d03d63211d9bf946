"""Small files become large ones: the same rows, the same chain, wherever it is killed."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from schemas.topics import OUTCOMES
from sinks.arrow_schemas import SCHEMAS
from sinks.compaction import compact, settled_days
from sinks.marks import Partition
from sinks.parquet_files import newest_file, read_mark
from sinks.storage import FolderStorage
from tests import factories as f
from tests.lake_case import LakeFolder

DAY = date(2026, 11, 23)
LARGE = 10**9


@pytest.fixture
def folder(tmp_path: Path) -> LakeFolder:
    found = LakeFolder(tmp_path / "lake")
    for step in range(6):
        found.ask(step=step)
        found.end(success=True, episode=f"e-{step}")
        found.write()
    return found


def everything(folder: LakeFolder) -> dict[str, list[str]]:
    return {dataset: sorted(map(str, folder.rows(dataset))) for dataset in SCHEMAS}


def files(folder: LakeFolder) -> int:
    return len(list(folder.storage.files("")))


def run(folder: LakeFolder, most_bytes: int = LARGE, dry_run: bool = False) -> Any:
    return compact(folder.lake, [DAY], most_bytes, dry_run, lambda line: None)


def test_one_file_a_partition_and_day_with_the_same_rows(folder: LakeFolder) -> None:
    before = everything(folder)
    done = run(folder)
    assert (done.files_before, done.files_after, files(folder)) == (18, 3, 3)
    assert everything(folder) == before
    assert run(folder).files_before == 3


def test_the_sink_goes_on_where_it_was(folder: LakeFolder) -> None:
    def mark() -> Any:
        newest = newest_file(folder.storage, "outcomes", Partition(OUTCOMES, 0))
        assert newest is not None
        return read_mark(folder.storage, newest)

    before = mark()
    run(folder)
    assert mark() == before
    folder.ask(step=6)
    folder.write()
    assert [row["step"] for row in folder.rows("outcomes")] == list(range(7))


def test_files_grow_no_larger_than_they_may(folder: LakeFolder) -> None:
    largest = max(file.size_bytes for file in folder.storage.files("outcomes/"))
    before = everything(folder)
    run(folder, most_bytes=2 * largest + 10)
    assert len(list(folder.storage.files("outcomes/"))) == 3
    assert everything(folder) == before


def test_a_dry_run_leaves_every_file(folder: LakeFolder) -> None:
    run(folder, dry_run=True)
    assert files(folder) == 18


class Dying(FolderStorage):
    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self._left = at

    def _step(self) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1

    def replace(self, key: str, data: bytes) -> None:
        self._step()
        super().replace(key, data)

    def delete(self, key: str) -> None:
        self._step()
        super().delete(key)


@pytest.mark.parametrize("at", range(0, 18, 2))
def test_killed_anywhere_the_next_run_ends_it(folder: LakeFolder, tmp_path: Path, at: int) -> None:
    before = everything(folder)
    whole = folder.lake.storage
    folder.lake.storage = Dying(tmp_path / "lake", at)
    with pytest.raises(KeyboardInterrupt):
        run(folder)
    folder.lake.storage = whole
    run(folder)
    assert everything(folder) == before
    assert files(folder) == 3


def test_today_and_yesterday_are_left_alone(folder: LakeFolder) -> None:
    noon = datetime.fromtimestamp(f.NOON_MS / 1000, UTC)
    assert settled_days(folder.lake, noon) == []
    assert settled_days(folder.lake, noon.replace(day=24)) == []
    assert settled_days(folder.lake, noon.replace(day=25)) == [DAY]
