"""The files of a LeRobotDataset v3.0: names, features and tables. Pure.

Source: lerobot 0.4.4, lerobot/datasets/utils.py and lerobot_dataset.py. Tables that lerobot reads with pandas carry
pandas' metadata, so that the task's text is the index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from sinks.export.statistics import Stats

VERSION = "v3.0"
INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
FILES_PER_CHUNK = 1000
DATA_FILE_MB, VIDEO_FILE_MB = 100, 200
IMAGE = "observation.images."
STATE, ACTION = "observation.state", "action"
_ONE: dict[str, Any] = {"shape": [1], "names": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What all frames of a dataset share."""

    robot_type: str
    fps: int
    #: Camera -> height, width in pixels.
    cameras: Mapping[str, tuple[int, int]]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]

    def features(self) -> dict[str, dict[str, Any]]:
        """Feature -> its description in info.json."""
        images = {
            f"{IMAGE}{camera}": {
                "dtype": "image",
                "shape": [height, width, 3],
                "names": ["height", "width", "channels"],
            }
            for camera, (height, width) in self.cameras.items()
        }
        return {
            **images,
            STATE: {"dtype": "float32", "shape": [len(self.state_names)], "names": list(self.state_names)},
            ACTION: {"dtype": "float32", "shape": [len(self.action_names)], "names": list(self.action_names)},
            # Whether the robot really saw this image: between two requests the last one is repeated.
            "is_keyframe": {"dtype": "bool", **_ONE},
            # The robot's own count of control steps: it jumps where steps are missing, frame_index does not.
            "step": {"dtype": "int64", **_ONE},
            "timestamp": {"dtype": "float32", **_ONE},
            "frame_index": {"dtype": "int64", **_ONE},
            "episode_index": {"dtype": "int64", **_ONE},
            "index": {"dtype": "int64", **_ONE},
            "task_index": {"dtype": "int64", **_ONE},
        }

    def schema(self) -> pa.Schema:
        """Columns of a data file."""
        return pa.schema([(name, _arrow(feature)) for name, feature in self.features().items()])


def _arrow(feature: Mapping[str, Any]) -> pa.DataType:
    if feature["dtype"] == "image":
        return pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    value = pa.type_for_alias(feature["dtype"])
    size = feature["shape"][0]
    return value if feature["shape"] == [1] and feature["names"] is None else pa.list_(value, size)


def data_key(number: int) -> str:
    """Where data file `number`, counted from 0, lies."""
    return DATA_PATH.format(chunk_index=number // FILES_PER_CHUNK, file_index=number % FILES_PER_CHUNK)


def info(shape: Shape, *, episodes: int, frames: int, tasks: int) -> dict[str, Any]:
    return {
        "codebase_version": VERSION,
        "robot_type": shape.robot_type,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": DATA_FILE_MB,
        "video_files_size_in_mb": VIDEO_FILE_MB,
        "fps": shape.fps,
        "splits": {"train": f"0:{episodes}"},
        "data_path": DATA_PATH,
        "video_path": None,
        "features": shape.features(),
    }


def tasks_table(tasks: Sequence[str]) -> pa.Table:
    """Task texts in the order of their index."""
    index = "__index_level_0__"
    columns: list[dict[str, str | None]] = [
        {"name": "task_index", "field_name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": None, "field_name": index, "pandas_type": "unicode", "numpy_type": "object"},
    ]
    pandas = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [{**column, "metadata": None} for column in columns],
        "creator": {"library": "pyarrow", "version": pa.__version__},
        "pandas_version": "2.0.0",
    }
    schema = pa.schema([("task_index", pa.int64()), (index, pa.string())], metadata={"pandas": json.dumps(pandas)})
    return pa.table({"task_index": list(range(len(tasks))), index: list(tasks)}, schema=schema)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeEntry:
    """A written episode as the metadata tells of it. Indices count frames of the whole dataset."""

    episode_index: int
    tasks: tuple[str, ...]
    length: int
    from_index: int
    data_file: int
    #: Hashed where ids are anonymized.
    customer_id: str
    robot_id: str
    episode_id: str
    success: bool | None
    missing_steps: int
    stats: Mapping[str, Stats]


def episodes_table(entries: Sequence[EpisodeEntry]) -> pa.Table:
    """Where each episode lies, whose it was, how it went, and its statistics."""
    rows = []
    for entry in entries:
        row: dict[str, Any] = {
            "episode_index": entry.episode_index,
            "tasks": list(entry.tasks),
            "length": entry.length,
            "data/chunk_index": entry.data_file // FILES_PER_CHUNK,
            "data/file_index": entry.data_file % FILES_PER_CHUNK,
            "dataset_from_index": entry.from_index,
            "dataset_to_index": entry.from_index + entry.length,
            "meta/episodes/chunk_index": 0,
            "meta/episodes/file_index": 0,
            "customer_id": entry.customer_id,
            "robot_id": entry.robot_id,
            "episode_id": entry.episode_id,
            "success": entry.success,
            "missing_steps": entry.missing_steps,
        }
        for feature, stats in entry.stats.items():
            row |= {f"stats/{feature}/{name}": value for name, value in stats.items()}
        rows.append(row)
    table = pa.Table.from_pylist(rows)
    # A column of nulls only would have no type.
    return table.set_column(table.schema.get_field_index("success"), "success", table["success"].cast(pa.bool_()))
