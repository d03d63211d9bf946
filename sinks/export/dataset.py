"""A LeRobotDataset v3.0 out of the lake: only episodes whose consent allows training, then and now.

Killed at any point, the same command goes on where it was: whole files that are written stay.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import date

from rich.console import Console
from rich.progress import Progress

from runtime.errors import Fatal
from schemas.cards import CardSet
from sinks.arrow_schemas import OBSERVATIONS
from sinks.export import layout, statistics
from sinks.export.frames import fps_of
from sinks.export.layout import EpisodeEntry, Shape
from sinks.export.pixels import picture
from sinks.export.planning import FILE_BYTES, PlannedEpisode, PlannedFile, plan_episodes, plan_files, tasks_of
from sinks.export.reading import Episode, read_episodes, read_pixels
from sinks.export.writing import Notes, Target, write_file
from sinks.lake_reader import Lake


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Which episodes. Days are UTC, of the requests, both included; None: all that the lake has."""

    since: date | None = None
    until: date | None = None
    robot_type: str | None = None
    only_success: bool = False

    def noted(self) -> dict[str, object]:
        return {name: str(value) if isinstance(value, date) else value for name, value in asdict(self).items()}


def write_dataset(
    lake: Lake,
    target: Target,
    cards: CardSet,
    query: Query,
    excluded: Collection[str] = (),
    file_bytes: int = FILE_BYTES,
) -> list[str]:
    """Write what is not written yet; what was exported and what was left out, in words.

    excluded: customers, as the lake names them, whose consent has ended. Raises Fatal, Unavailable.
    """
    days = lake.days(OBSERVATIONS)
    if not days:
        raise Fatal("the lake has no observations yet: `vlastream books` shows what the sinks have written")
    first, last = query.since or days[0], query.until or days[-1]
    if first > last:
        raise Fatal(f"no episode may be exported from {first} to {last}: the lake has {days[0]} to {days[-1]}")
    notes = target.notes(query.noted())
    found = read_episodes(
        lake,
        since=first,
        until=last,
        robot_type=query.robot_type,
        only_success=query.only_success,
        excluded=excluded,
    )
    if not found.episodes:
        raise Fatal("no episode may be exported" + _reasons(found.skipped))
    planned = plan_episodes(found.episodes, found.episodes[0].action_names, found.skipped)
    if not planned:
        raise Fatal("no episode may be exported" + _reasons(found.skipped))
    shape = _shape(lake, [one.episode for one in planned], cards)
    tasks = tasks_of(planned)
    files = plan_files(planned, shape, tasks, file_bytes)
    entries = _write_files(target, lake, files, shape, tasks, notes)
    _write_metadata(target, shape, tasks, entries)
    target.keep_only("data/", {layout.data_key(file.number) for file in files})
    return _report(planned, found.skipped, shape)


def _write_files(
    target: Target,
    lake: Lake,
    files: Sequence[PlannedFile],
    shape: Shape,
    tasks: Sequence[str],
    notes: Notes,
) -> list[EpisodeEntry]:
    # Of files that are not planned any more nothing is worth remembering.
    digests = {file.digest for file in files}
    notes.finished = {digest: entries for digest, entries in notes.finished.items() if digest in digests}
    target.note(notes)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("frames", total=sum(file.frames for file in files))
        for file in files:
            if file.digest not in notes.finished or not target.has(layout.data_key(file.number)):
                notes.finished[file.digest] = write_file(target, lake, file, shape, tasks)
                target.note(notes)
            progress.advance(task, file.frames)
    return [entry for file in files for entry in notes.finished[file.digest]]


def _write_metadata(target: Target, shape: Shape, tasks: Sequence[str], entries: Sequence[EpisodeEntry]) -> None:
    """info.json comes last: a dataset that has it is complete."""
    frames = sum(entry.length for entry in entries)
    target.put_table(layout.TASKS, layout.tasks_table(tasks))
    target.put_table(layout.EPISODES_PATH.format(chunk_index=0, file_index=0), layout.episodes_table(entries))
    stats = {name: statistics.combined([entry.stats[name] for entry in entries]) for name in shape.features()}
    target.put_json(layout.STATS, stats)
    target.put_json(layout.INFO, layout.info(shape, episodes=len(entries), frames=frames, tasks=len(tasks)))


def _shape(lake: Lake, episodes: Sequence[Episode], cards: CardSet) -> Shape:
    first = episodes[0]
    keyframe = first.keyframes[0]
    stored = read_pixels(lake, [keyframe.row_id], first.days)[keyframe.row_id]
    card = cards.embodiment(first.robot_type)
    named = tuple(dim.name for dim in card.state) if card is not None else ()
    numbered = tuple(f"state_{number}" for number in range(len(keyframe.state)))
    return Shape(
        robot_type=first.robot_type,
        fps=fps_of([episode.keyframes for episode in episodes], first.control_rate_hz),
        cameras={camera: picture(stored[camera]).size for camera in first.cameras},
        state_names=named if len(named) == len(numbered) else numbered,
        action_names=first.action_names,
    )


def _report(planned: Sequence[PlannedEpisode], skipped: Counter[str], shape: Shape) -> list[str]:
    frames = sum(len(one.frames) for one in planned)
    lines = [f"{len(planned)} episodes, {frames} frames at {shape.fps} Hz of {shape.robot_type}"]
    gaps = {
        "control steps that nothing is known of": sum(one.missing_steps for one in planned),
        "repeated requests of a step": sum(one.repeated for one in planned),
        "requests without any action": sum(one.silent for one in planned),
    }
    lines += [f"gaps: {count} {what}" for what, count in gaps.items() if count]
    return lines + [f"left out: {count} episodes, {why}" for why, count in sorted(skipped.items())]


def _reasons(skipped: Counter[str]) -> str:
    found = ", ".join(f"{count} {why}" for why, count in sorted(skipped.items()))
    return f": {found}" if found else ": nobody whose consent allows training has sent one on these days"
