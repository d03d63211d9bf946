"""Which episodes go into which data file, and under what digest: pure.

The plan depends on nothing but the lake's content: an export that goes on after a kill makes the same one, and finds
by the digests which files it has written already.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sinks.export.frames import Frame, frames_of, kept
from sinks.export.layout import Shape
from sinks.export.reading import Episode

#: Pixels of one file as they stand in the frames; repeated ones count each time, though they compress to nothing.
FILE_BYTES = 96 * 1024 * 1024
#: Counts up when the same input is written in another way.
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedEpisode:
    episode: Episode
    frames: tuple[Frame, ...]
    #: Control steps that nothing is known of, requests of one step twice, requests without any action.
    missing_steps: int
    repeated: int
    silent: int

    @property
    def frame_bytes(self) -> int:
        return self.episode.image_bytes * len(self.frames) // max(1, len(self.episode.keyframes))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFile:
    """`digest` says all that the file is made from."""

    number: int
    episodes: tuple[PlannedEpisode, ...]
    first_episode: int
    first_frame: int
    digest: str

    @property
    def frames(self) -> int:
        return sum(len(planned.frames) for planned in self.episodes)


def plan_episodes(
    episodes: Sequence[Episode], action_names: tuple[str, ...], skipped: Counter[str]
) -> list[PlannedEpisode]:
    """Episodes with their frames; those that do not fit into the first one's shape are counted in `skipped`."""
    planned = []
    for episode in episodes:
        if episode.action_names != action_names or episode.cameras != episodes[0].cameras:
            skipped["other cameras or actions than the first"] += 1
            continue
        if len(episode.keyframes[0].state) != len(episodes[0].keyframes[0].state):
            skipped["another size of state than the first"] += 1
            continue
        frames, gaps = frames_of(episode.keyframes)
        if not frames:
            skipped["no actions"] += 1
            continue
        planned.append(
            PlannedEpisode(
                episode=episode,
                frames=tuple(frames),
                missing_steps=gaps.steps,
                repeated=gaps.repeated,
                silent=gaps.silent,
            )
        )
    return planned


def tasks_of(planned: Sequence[PlannedEpisode]) -> list[str]:
    """Every instruction once, in the order in which the frames show them."""
    texts = (keyframe.instruction for one in planned for keyframe in kept(one.episode.keyframes))
    return list(dict.fromkeys(texts))


def plan_files(
    planned: Sequence[PlannedEpisode], shape: Shape, tasks: Sequence[str], file_bytes: int
) -> list[PlannedFile]:
    """Whole episodes to a file, file_bytes of pixels at most unless one alone is larger."""
    groups: list[list[PlannedEpisode]] = []
    size = file_bytes + 1
    for one in planned:
        if size + one.frame_bytes > file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(one)
        size += one.frame_bytes
    files: list[PlannedFile] = []
    episode = frame = 0
    for number, group in enumerate(groups):
        files.append(
            PlannedFile(
                number=number,
                episodes=tuple(group),
                first_episode=episode,
                first_frame=frame,
                digest=_digest(group, shape, tasks, (episode, frame)),
            )
        )
        episode += len(group)
        frame += files[-1].frames
    return files


def _digest(group: Sequence[PlannedEpisode], shape: Shape, tasks: Sequence[str], start: tuple[int, int]) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, shape.fps, shape.features(), start]).encode())
    for one in group:
        used = {keyframe.instruction for keyframe in one.episode.keyframes}
        digest.update(json.dumps([one.episode.key, one.episode.success, one.missing_steps]).encode())
        digest.update(json.dumps(sorted((text, tasks.index(text)) for text in used if text in tasks)).encode())
        for keyframe in kept(one.episode.keyframes):
            digest.update(json.dumps([keyframe.row_id, keyframe.instruction, keyframe.state]).encode())
        for frame in one.frames:
            digest.update(json.dumps([frame.step, frame.keyframe, frame.is_keyframe]).encode())
            digest.update(frame.action.tobytes())
    return digest.hexdigest()
