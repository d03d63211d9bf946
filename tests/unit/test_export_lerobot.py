"""A LeRobotDataset out of a lake, read back by plain pyarrow. `make test-export` loads one with lerobot itself."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from runtime.errors import Fatal
from sinks.export.dataset import Query, write_dataset
from sinks.export.writing import Target
from sinks.storage import FolderStorage
from tests import factories as f
from tests.cards import cards
from tests.lake_case import LakeFolder, actions

EVERYTHING = Query()
ONE_FILE_EACH = 1


@pytest.fixture
def folder(tmp_path: Path) -> LakeFolder:
    return LakeFolder(tmp_path / "lake")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "dataset"


def export(
    folder: LakeFolder, out: Path, query: Query = EVERYTHING, storage: FolderStorage | None = None, **options: Any
) -> list[str]:
    target = Target(storage or FolderStorage(out), "")
    return write_dataset(folder.write(), target, cards(), query, **options)


def episode(folder: LakeFolder, name: str, *, requests: int = 3, every: int = 4, **fields: Any) -> list[str]:
    """Requests at steps 0, 4, 8, ... at the control rate, each answered by a chunk of 8."""
    return [
        folder.ask(
            step=number * every,
            episode=name,
            at_ms=f.NOON_MS + number * every * 100,
            chunk=actions(8, float(number)),
            **fields,
        )
        for number in range(requests)
    ]


def info(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "meta" / "info.json").read_text())
    return found


def frames(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = ds.dataset(out / "data", format="parquet").to_table().to_pylist()
    return found


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_frame_for_each_control_step_with_the_image_that_was_last_seen(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    export(folder, out)
    found = frames(out)
    assert [frame["step"] for frame in found] == list(range(9))
    assert [frame["is_keyframe"] for frame in found] == [step % 4 == 0 for step in range(9)]
    assert [frame["frame_index"] for frame in found] == list(range(9))
    assert [frame["timestamp"] for frame in found] == pytest.approx([step / 10 for step in range(9)])
    assert found[5]["action"] == pytest.approx([1.001] * 7)
    shown = [frame["observation.images.base"]["bytes"] for frame in found]
    assert shown[4] == shown[5] == f.jpeg(64, 48, 4) != shown[0]


def test_info_tells_what_the_files_hold(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    episode(folder, "two", instruction="push the blue block left")
    export(folder, out)
    told = info(out)
    assert (told["codebase_version"], told["robot_type"], told["fps"]) == ("v3.0", f.ROBOT_TYPE, 10)
    assert (told["total_episodes"], told["total_frames"], told["total_tasks"]) == (2, 18, 2)
    assert told["features"]["observation.images.base"]["shape"] == [48, 64, 3]
    assert told["features"]["action"]["names"] == f.action_chunk().names
    data = pq.read_table(out / told["data_path"].format(chunk_index=0, file_index=0))
    assert set(data.column_names) == set(told["features"])


def test_episodes_tasks_and_statistics_fit_the_frames(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    episode(folder, "two", instruction="push the blue block left", requests=2)
    folder.end(success=True, episode="two")
    export(folder, out)
    rows = pq.read_table(out / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(row["dataset_from_index"], row["dataset_to_index"], row["length"]) for row in rows] == [
        (0, 9, 9),
        (9, 14, 5),
    ]
    assert [row["success"] for row in rows] == [None, True]
    assert rows[1]["tasks"] == ["push the blue block left"]
    tasks = pq.read_table(out / "meta/tasks.parquet")
    assert tasks.column("task_index").to_pylist() == [0, 1]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["__index_level_0__"]
    stats = json.loads((out / "meta/stats.json").read_text())
    values = np.array([frame["action"] for frame in frames(out)])
    assert stats["action"]["mean"] == pytest.approx(values.mean(0))
    assert stats["action"]["std"] == pytest.approx(values.std(0))
    assert stats["action"]["count"] == [14]
    assert np.shape(stats["observation.images.base"]["mean"]) == (3, 1, 1)
    assert rows[0]["stats/action/max"] == pytest.approx(values[:9].max(0))


def test_only_who_allows_training_is_in_it(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    episode(folder, "two", customer="says metadata", tier="metadata")
    episode(folder, "three", customer="says nothing", tier="none")
    episode(folder, "four", customer="has changed its mind")
    told = export(folder, out, excluded={"has changed its mind"})
    assert info(out)["total_episodes"] == 1
    assert "left out: 1 episodes, consent has ended" in told


def test_a_success_is_what_somebody_called_one(folder: LakeFolder, out: Path) -> None:
    for name, success in (("one", True), ("two", False), ("three", None)):
        episode(folder, name)
        folder.end(success=success, episode=name)
    export(folder, out, Query(only_success=True))
    assert [row["episode_id"] for row in pq.read_table(out / "meta/episodes").to_pylist()] == ["one"]


def test_a_correction_is_training_data(folder: LakeFolder, out: Path) -> None:
    rows = episode(folder, "one")
    folder.correct(rows[1], actions(2, 9.0))
    export(folder, out)
    assert [frame["action"][0] for frame in frames(out)][3:7] == pytest.approx([0.003, 9.0, 9.001, 1.002])


def test_gaps_are_said_and_do_not_break_the_clock(folder: LakeFolder, out: Path) -> None:
    folder.ask(step=0, chunk=actions(2), at_ms=f.NOON_MS)
    folder.ask(step=10, chunk=actions(2), at_ms=f.NOON_MS + 1000)
    folder.ask(step=12, refused="expired", at_ms=f.NOON_MS + 1200)
    told = export(folder, out)
    assert [frame["step"] for frame in frames(out)] == [0, 1, 10, 11]
    assert [frame["timestamp"] for frame in frames(out)] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert "gaps: 9 control steps that nothing is known of" in told
    assert "gaps: 1 requests without any action" in told


def test_several_robot_types_want_a_choice(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    episode(folder, "two", robot_type="another_arm")
    with pytest.raises(Fatal, match="--robot-type"):
        export(folder, out)
    told = export(folder, out, Query(robot_type="another_arm"))
    assert told[0].endswith("of another_arm")


def test_days_are_those_of_the_requests(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    with pytest.raises(Fatal, match="no episode may be exported"):
        export(folder, out, Query(since=date(2026, 11, 24)))
    export(folder, out, Query(since=date(2026, 11, 23), until=date(2026, 11, 23)))
    assert info(out)["total_episodes"] == 1


def test_an_empty_lake_is_said(folder: LakeFolder, out: Path) -> None:
    with pytest.raises(Fatal, match="no observations"):
        export(folder, out)


def test_what_lies_at_the_place_already_is_left_alone(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    out.mkdir()
    (out / "thesis.txt").write_text("important")
    with pytest.raises(Fatal, match="not empty"):
        export(folder, out)
    assert [path.name for path in out.iterdir() if path.is_file()] == ["thesis.txt"]


def test_another_export_at_the_place_is_left_alone(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one")
    export(folder, out)
    with pytest.raises(Fatal, match="another export"):
        export(folder, out, Query(robot_type=f.ROBOT_TYPE))


class Dying(FolderStorage):
    """Ends at the write with this number, as kill -9 would: what was written before stays."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self._left = at

    def replace(self, key: str, data: bytes) -> None:
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        super().replace(key, data)


@pytest.mark.parametrize("at", range(10))
def test_killed_at_any_write_the_same_command_finishes_the_same_dataset(
    folder: LakeFolder, out: Path, tmp_path: Path, at: int
) -> None:
    for name in ("one", "two", "three"):
        episode(folder, name)
    export(folder, tmp_path / "undisturbed", file_bytes=ONE_FILE_EACH)
    with pytest.raises(KeyboardInterrupt):
        export(folder, out, storage=Dying(out, at), file_bytes=ONE_FILE_EACH)
    assert not (out / "meta" / "info.json").exists()
    export(folder, out, file_bytes=ONE_FILE_EACH)
    assert contents(out) == contents(tmp_path / "undisturbed")


def test_finished_files_are_not_written_again(folder: LakeFolder, out: Path) -> None:
    for name in ("a", "b"):
        episode(folder, name)
    export(folder, out, file_bytes=ONE_FILE_EACH)
    before = {path: path.stat().st_mtime_ns for path in (out / "data").rglob("*.parquet")}
    episode(folder, "c")
    export(folder, out, file_bytes=ONE_FILE_EACH)
    assert info(out)["total_episodes"] == 3
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_smaller_export_leaves_no_files_of_the_larger_one(folder: LakeFolder, out: Path) -> None:
    for name in ("one", "two"):
        episode(folder, name, customer=name)
    export(folder, out, file_bytes=ONE_FILE_EACH)
    export(folder, out, excluded={"two"}, file_bytes=ONE_FILE_EACH)
    assert len(list((out / "data").rglob("*.parquet"))) == 1
    assert len(frames(out)) == info(out)["total_frames"] == 9


def test_pictures_are_whole_image_files(folder: LakeFolder, out: Path) -> None:
    episode(folder, "one", cameras=("base", "wrist"))
    export(folder, out)
    table = ds.dataset(out / "data", format="parquet").to_table()
    for camera in ("base", "wrist"):
        assert table.schema.field(f"observation.images.{camera}").type == pa.struct(
            [("bytes", pa.binary()), ("path", pa.string())]
        )
        with Image.open(io.BytesIO(table[f"observation.images.{camera}"][0]["bytes"].as_py())) as picture:
            assert picture.size == (64, 48)
