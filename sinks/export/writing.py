"""Data files of a dataset: one at a time, whole or not at all, and a note of each that is finished."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runtime.errors import Fatal
from sinks.export import layout, statistics
from sinks.export.frames import Keyframe, kept
from sinks.export.layout import EpisodeEntry, Shape
from sinks.export.pixels import Picture, picture
from sinks.export.planning import PlannedEpisode, PlannedFile
from sinks.export.reading import read_pixels
from sinks.lake_reader import Lake
from sinks.storage import NotFound, Storage

#: What is finished, by digest: a resumed export goes by it, lerobot does not look at it.
PROGRESS = "meta/export.json"
#: Keyframes whose pixels are in memory at a time.
_SLICE = 64
_MAX_NOTE_BYTES = 256 * 1024 * 1024


@dataclass(slots=True)
class Notes:
    """What was asked for, and digest -> the episodes of that finished file."""

    query: dict[str, Any]
    finished: dict[str, list[EpisodeEntry]]


class Target:
    """A dataset in the making, below `prefix` of a storage."""

    def __init__(self, storage: Storage, prefix: str) -> None:
        self._storage = storage
        self._prefix = prefix

    def notes(self, query: dict[str, Any]) -> Notes:
        """Those of an export that was begun here, or new ones.

        Raises Fatal where another export, or anything else, lies here.
        """
        try:
            noted = json.loads(self._storage.read(self._prefix + PROGRESS, 0, _MAX_NOTE_BYTES))
        except NotFound:
            if next(self._storage.files(self._prefix), None) is not None:
                raise Fatal("the place of --out is not empty, and holds no export: choose another one") from None
            return Notes(query, {})
        if noted["query"] != query:
            raise Fatal(f"the place of --out holds another export, {noted['query']}: choose another one or delete it")
        return Notes(
            query, {digest: [_entry(each) for each in entries] for digest, entries in noted["finished"].items()}
        )

    def note(self, notes: Notes) -> None:
        finished = {digest: [asdict(entry) for entry in entries] for digest, entries in notes.finished.items()}
        self.put_json(PROGRESS, {"query": notes.query, "finished": finished})

    def has(self, key: str) -> bool:
        return any(file.key == self._prefix + key for file in self._storage.files(self._prefix + key))

    def put(self, key: str, data: bytes) -> None:
        self._storage.replace(self._prefix + key, data)

    def put_json(self, key: str, content: object) -> None:
        self.put(key, json.dumps(content, indent=2, ensure_ascii=False).encode())

    def put_table(self, key: str, table: pa.Table) -> None:
        file = io.BytesIO()
        pq.write_table(table, file, compression="zstd")
        self.put(key, file.getvalue())

    def keep_only(self, folder: str, keys: set[str]) -> None:
        """Delete the files of a longer export that was here before."""
        for file in list(self._storage.files(self._prefix + folder)):
            if file.key.removeprefix(self._prefix) not in keys:
                self._storage.delete(file.key)


def _entry(noted: dict[str, Any]) -> EpisodeEntry:
    entry = EpisodeEntry(**noted)
    return replace(entry, tasks=tuple(entry.tasks))


def write_file(target: Target, lake: Lake, file: PlannedFile, shape: Shape, tasks: Sequence[str]) -> list[EpisodeEntry]:
    """Write one data file; the metadata of its episodes. Raises Fatal for an image of another size than the first."""
    schema = shape.schema()
    buffer = io.BytesIO()
    entries = []
    frame_number = file.first_frame
    with pq.ParquetWriter(buffer, schema, compression="zstd") as writer:
        for number, planned in enumerate(file.episodes, file.first_episode):
            entry = _write_episode(writer, lake, planned, number, frame_number, shape, tasks)
            entries.append(replace(entry, data_file=file.number))
            frame_number += entry.length
    target.put(layout.data_key(file.number), buffer.getvalue())
    return entries


def _write_episode(
    writer: pq.ParquetWriter,
    lake: Lake,
    planned: PlannedEpisode,
    number: int,
    first_frame: int,
    shape: Shape,
    tasks: Sequence[str],
) -> EpisodeEntry:
    keyframes = kept(planned.episode.keyframes)
    columns: dict[str, list[Any]] = {name: [] for name in shape.features()}
    samples: dict[str, list[Any]] = {camera: [] for camera in shape.cameras}
    written: list[dict[str, Any]] = []
    for start in range(0, len(keyframes), _SLICE):
        pictures = _pictures(lake, planned, keyframes[start : start + _SLICE], shape)
        if start % (_SLICE * 4) == 0:
            for camera, found in samples.items():
                found += [shown[camera] for shown in list(pictures.values())[:: max(1, len(pictures) // 8)]]
        rows = list(_rows(planned, keyframes, pictures, start, number, first_frame, shape, tasks))
        writer.write_table(pa.Table.from_pylist(rows, schema=shape.schema()))
        written += [{name: value for name, value in row.items() if not name.startswith(layout.IMAGE)} for row in rows]
    for row in written:
        for name, value in row.items():
            columns[name].append(value)
    stats = {
        name: statistics.of_vectors(np.asarray(values))
        for name, values in columns.items()
        if not name.startswith(layout.IMAGE)
    }
    for camera, found in samples.items():
        stats[f"{layout.IMAGE}{camera}"] = statistics.of_images([shown.pixels() for shown in found])
    customer_id, robot_id, episode_id = planned.episode.key
    return EpisodeEntry(
        episode_index=number,
        tasks=tuple(dict.fromkeys(keyframe.instruction for keyframe in keyframes)),
        length=len(planned.frames),
        from_index=first_frame,
        data_file=0,
        customer_id=customer_id,
        robot_id=robot_id,
        episode_id=episode_id,
        success=planned.episode.success,
        missing_steps=planned.missing_steps,
        stats=stats,
    )


def _pictures(
    lake: Lake, planned: PlannedEpisode, keyframes: Sequence[Keyframe], shape: Shape
) -> dict[str, dict[str, Picture]]:
    """Row id -> camera -> picture."""
    stored = read_pixels(lake, [keyframe.row_id for keyframe in keyframes], planned.episode.days)
    pictures = {}
    for keyframe in keyframes:
        shown = {camera: picture(image) for camera, image in stored[keyframe.row_id].items()}
        for camera, one in shown.items():
            if one.size != shape.cameras[camera]:
                raise Fatal(
                    f"camera {camera} has {one.size[0]} x {one.size[1]} pixels in request {keyframe.row_id} and "
                    f"{shape.cameras[camera][0]} x {shape.cameras[camera][1]} in the first one: choose days by --from "
                    "and --to on which it had one size"
                )
        pictures[keyframe.row_id] = shown
    return pictures


def _rows(
    planned: PlannedEpisode,
    keyframes: Sequence[Keyframe],
    pictures: dict[str, dict[str, Picture]],
    start: int,
    number: int,
    first_frame: int,
    shape: Shape,
    tasks: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Frames that show keyframes start, start + 1, ... start + _SLICE - 1."""
    for position, frame in enumerate(planned.frames):
        if not start <= frame.keyframe < start + _SLICE:
            continue
        keyframe = keyframes[frame.keyframe]
        shown = pictures[keyframe.row_id]
        yield {
            **{f"{layout.IMAGE}{camera}": {"bytes": one.file, "path": None} for camera, one in shown.items()},
            layout.STATE: list(keyframe.state),
            layout.ACTION: frame.action.tolist(),
            "is_keyframe": frame.is_keyframe,
            "step": frame.step,
            "timestamp": position / shape.fps,
            "frame_index": position,
            "episode_index": number,
            "index": first_frame + position,
            "task_index": tasks.index(keyframe.instruction),
        }
