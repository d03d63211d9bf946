"""Episodes out of the lake: those that may be trained on, with everything that belongs to them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, date, timedelta
from typing import Any

import duckdb
import numpy as np
import pyarrow.dataset as ds

from runtime.errors import Fatal
from sinks.arrow_schemas import OBSERVATIONS
from sinks.export.frames import Actions, Keyframe
from sinks.lake_reader import Lake

#: Everything but the pixels, each request once, in the order in which an episode was lived.
_REQUESTS = """
    SELECT o.row_id, o.customer_id, o.robot_id, o.robot_type, o.episode_id, o.step, o.instruction, o.state,
           o.executed, o.executed_dim, o.cameras, o.with_pixels, o.image_bytes,
           r.actions, r.action_dim, r.action_names, r.control_rate_hz,
           f.corrected, f.corrected_dim, o.requested_at, o.captured_at_ms
    FROM (
        SELECT DISTINCT ON (row_id) * FROM (
            SELECT * EXCLUDE (images), list_transform(images, lambda x: x.camera) AS cameras,
                   list_transform(images, lambda x: x.data IS NOT NULL) AS with_pixels,
                   list_sum(list_transform(images, lambda x: coalesce(octet_length(x.data), 0))) AS image_bytes
            FROM observations
        )
    ) o
    LEFT JOIN (SELECT DISTINCT ON (row_id) * FROM outcomes) r USING (row_id)
    LEFT JOIN (
        SELECT row_id, arg_max(corrected, "at") AS corrected, arg_max(corrected_dim, "at") AS corrected_dim
        FROM feedback WHERE corrected IS NOT NULL GROUP BY row_id
    ) f USING (row_id)
    WHERE o.consent_tier = 'full' AND o.requested_at >= ?::DATE AND o.requested_at < ?::DATE + 1
    ORDER BY o.customer_id, o.robot_id, o.episode_id, o.source_topic, o.source_partition, o.source_offset
"""
_JUDGED = """
    SELECT customer_id, robot_id, episode_id, bool_and(success) FROM episodes
    WHERE success IS NOT NULL GROUP BY ALL
"""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """width, height: pixels, of rgb8 only; else as in the image's header."""

    data: bytes
    encoding: str
    width: int
    height: int


#: Customer, robot and episode.
Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Episode:
    key: Key
    robot_type: str
    keyframes: tuple[Keyframe, ...]
    cameras: tuple[str, ...]
    action_names: tuple[str, ...]
    control_rate_hz: float
    image_bytes: int
    #: None: nobody has said.
    success: bool | None
    #: UTC days of the first and the last request.
    day: date
    last_day: date

    @property
    def days(self) -> list[date]:
        """Days whose files may hold the rows: those of appends, and the sink's clock may be past midnight by then."""
        return [self.day + timedelta(days=number) for number in range((self.last_day - self.day).days + 2)]


@dataclass(slots=True)
class Found:
    """Episodes in a fixed order, and what was left out by why."""

    episodes: list[Episode]
    skipped: Counter[str]


def read_episodes(
    lake: Lake,
    *,
    since: date,
    until: date,
    robot_type: str | None,
    only_success: bool,
    excluded: Collection[str],
) -> Found:
    """excluded: customers, as the lake names them, whose consent has ended since.

    Raises Fatal where several robot types are there and none was chosen.
    """
    days = [since + timedelta(days=number) for number in range((until - since).days + 2)]
    connection = lake.duckdb(days)
    judged = {(c, r, e): success for c, r, e, success in connection.execute(_JUDGED).fetchall()}
    groups = _grouped(connection, since, until)
    types = sorted({rows[0]["robot_type"] for rows in groups.values()})
    if robot_type is None and len(types) > 1:
        raise Fatal(f"a dataset holds one robot type: choose one of {', '.join(types)} by --robot-type")
    found = Found([], Counter())
    for key, rows in groups.items():
        success = judged.get(key)
        why = _unfit(key, rows, robot_type, only_success and success is not True, excluded)
        if why:
            found.skipped[why] += 1
        else:
            found.episodes.append(_episode(key, rows, success))
    return found


def read_pixels(lake: Lake, row_ids: Sequence[str], days: Sequence[date]) -> dict[str, dict[str, StoredImage]]:
    """Row id -> camera -> its image."""
    rows = lake.dataset(OBSERVATIONS, days).to_table(
        columns=["row_id", "images"], filter=ds.field("row_id").isin(list(row_ids))
    )
    return {
        row["row_id"]: {
            image["camera"]: StoredImage(image["data"], image["encoding"], image["width"], image["height"])
            for image in row["images"]
        }
        for row in rows.to_pylist()
    }


def _grouped(connection: duckdb.DuckDBPyConnection, since: date, until: date) -> dict[Key, list[dict[str, Any]]]:
    cursor = connection.execute(_REQUESTS, [since, until])
    names = [column[0] for column in cursor.description or []]
    groups: defaultdict[Key, list[dict[str, Any]]] = defaultdict(list)
    while rows := cursor.fetchmany(1000):
        for values in rows:
            row = dict(zip(names, values, strict=True))
            groups[row["customer_id"], row["robot_id"], row["episode_id"]].append(row)
    return dict(sorted(groups.items(), key=lambda group: (group[1][0]["requested_at"], group[0])))


def _unfit(
    key: Key, rows: list[dict[str, Any]], robot_type: str | None, failed: bool, excluded: Collection[str]
) -> str:
    """Why an episode is left out; empty if it is not."""
    if key[0] in excluded:
        return "consent has ended"
    if not key[2]:
        return "no episode id"
    if robot_type is not None and rows[0]["robot_type"] != robot_type:
        return "another robot type"
    if failed:
        return "not judged a success"
    if len({len(row["state"]) for row in rows}) > 1:
        return "states of several sizes"
    if len({tuple(row["cameras"]) for row in rows}) > 1 or not all(all(row["with_pixels"]) for row in rows):
        return "images missing"
    if not any(row["action_names"] for row in rows):
        return "no actions"
    return ""


def _episode(key: Key, rows: list[dict[str, Any]], success: bool | None) -> Episode:
    told = next(row for row in rows if row["action_names"])
    return Episode(
        key=key,
        robot_type=rows[0]["robot_type"],
        keyframes=tuple(
            Keyframe(
                row_id=row["row_id"],
                step=int(row["step"]),
                instruction=row["instruction"],
                state=tuple(row["state"]),
                chunk=_matrix(row["actions"], row["action_dim"]),
                executed=_matrix(row["executed"], row["executed_dim"]),
                corrected=_matrix(row["corrected"], row["corrected_dim"]),
                captured_at_ms=int(row["captured_at_ms"]),
            )
            for row in rows
        ),
        cameras=tuple(rows[0]["cameras"]),
        action_names=tuple(told["action_names"]),
        control_rate_hz=float(told["control_rate_hz"]),
        image_bytes=sum(int(row["image_bytes"] or 0) for row in rows),
        success=success,
        day=rows[0]["requested_at"].astimezone(UTC).date(),
        last_day=rows[-1]["requested_at"].astimezone(UTC).date(),
    )


def _matrix(values: list[float] | None, dim: int | None) -> Actions | None:
    return np.asarray(values, np.float32).reshape(-1, dim) if values and dim else None
