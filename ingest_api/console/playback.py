"""An episode as its player shows it: the requests of one robot in their order, as curves over the whole. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, select

from ingest_api.console.plots import Curve, curve
from ingest_api.reading import Row
from runtime.data_tables import episodes
from runtime.tables import inference_log
from schemas.cards import EmbodimentCard

#: Requests of one episode that the player shows; of a longer one it has the first.
MOST_STEPS = 2000
#: Among so many of the newest requests, episodes are found that no robot told of by itself.
_SEARCHED = 20_000
_STEP = (
    "id", "customer_id", "robot_id", "robot_type", "deployment", "episode_id", "step", "instruction", "status", "code",
    "action_vector", "safety_score", "latency_total_ms", "created_at",
)  # fmt: skip
_WIDTH = 480.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Playback:
    """steps: rows in their order, at least one. curves: first action of each chunk, by dimension; then how it went.

    offsets_ms: when each request came, after the first. xs: where each step lies on every curve.
    """

    steps: list[Row]
    names: list[str]
    units: list[str]
    curves: list[Curve]
    scores: list[Curve]
    offsets_ms: list[int]
    xs: list[float]

    @property
    def duration_s(self) -> float:
        return self.offsets_ms[-1] / 1000

    def acted(self, number: int) -> list[tuple[str, str, float]]:
        """Name, unit and value of the first action of a step's chunk; empty where there was none."""
        values = self.steps[number]["action_vector"] or []
        return list(zip(self.names, self.units, map(float, values), strict=False))


def steps_query(episode_id: str, robot_id: str | None, customer_id: str | None) -> Select[Any]:
    """Requests of an episode in their order. customer_id None: anybody's, for operators alone."""
    log = inference_log.c
    query = select(*(log[name] for name in _STEP)).where(*_owned(log.customer_id, customer_id))
    query = query.where(log.episode_id == episode_id)
    if robot_id is not None:
        query = query.where(log.robot_id == robot_id)
    return query.order_by(log.created_at, log.id).limit(MOST_STEPS)


def told_query(episode_id: str, robot_id: str, customer_id: str) -> Select[Any]:
    """What the robot said of an episode: one row or none."""
    return select(episodes).where(
        episodes.c.customer_id == customer_id, episodes.c.robot_id == robot_id, episodes.c.episode_id == episode_id
    )


def seen_query(robot_id: str | None, customer_id: str | None, limit: int) -> Select[Any]:
    """Episodes among the newest requests, newest first, with their number of steps."""
    log = inference_log.c
    names = ("customer_id", "robot_id", "robot_type", "episode_id", "instruction", "status", "created_at")
    newest = select(*(log[name] for name in names)).where(*_owned(log.customer_id, customer_id))
    newest = newest.where(log.episode_id.is_not(None))
    if robot_id is not None:
        newest = newest.where(log.robot_id == robot_id)
    found = newest.order_by(log.created_at.desc()).limit(_SEARCHED).subquery().c
    return _summed(found).order_by(func.min(found.created_at).desc()).limit(limit)


def counted_query(rows: Sequence[Row], customer_id: str | None) -> Select[Any]:
    """Steps of episodes that are known by rows of `episodes`."""
    log = inference_log.c
    query = _summed(log).where(*_owned(log.customer_id, customer_id))
    query = query.where(log.robot_id.in_(sorted({row["robot_id"] for row in rows})))
    query = query.where(log.episode_id.in_(sorted({row["episode_id"] for row in rows})))
    begins = [row["started_at"] for row in rows if row["started_at"] is not None]
    return query.where(log.created_at >= min(begins)) if len(begins) == len(rows) else query


def playback(rows: Sequence[Row], card: EmbodimentCard | None) -> Playback:
    """rows: of `steps_query`, at least one. card: the robot as its deployment commands it, for names and units."""
    steps = list(rows)
    dim = max((len(row["action_vector"] or ()) for row in steps), default=0)
    named = card is not None and len(card.actions) == dim
    names = (
        [each.name for each in card.actions] if card is not None and named else [f"dimension {n}" for n in range(dim)]
    )
    units = [each.unit for each in card.actions] if card is not None and named else [""] * dim
    begin = steps[0]["created_at"]
    scores = [curve("safety score", "", [row["safety_score"] for row in steps], width=_WIDTH, from_zero=True)]
    scores.append(curve("latency", "ms", [row["latency_total_ms"] for row in steps], width=_WIDTH, from_zero=True))
    return Playback(
        steps=steps,
        names=names,
        units=units,
        curves=[
            curve(name, unit, [_at(row["action_vector"], number) for row in steps], width=_WIDTH)
            for number, (name, unit) in enumerate(zip(names, units, strict=True))
        ],
        scores=scores,
        offsets_ms=[round((row["created_at"] - begin).total_seconds() * 1000) for row in steps],
        xs=[x for x, _ in curve("", "", [0.0] * len(steps), width=_WIDTH).dots],
    )


def merged(told: Sequence[Row], seen: Sequence[Row], customer_id: str | None, limit: int) -> list[Row]:
    """Episodes newest first: what robots told of them, and what their requests say, by customer, robot and episode."""
    found: dict[tuple[str | None, str, str], Row] = {}
    for row in (*seen, *told):
        key = (row.get("customer_id", customer_id), row["robot_id"], row["episode_id"])
        before = found.get(key, {})
        found[key] = {
            "customer_id": key[0],
            "robot_id": key[1],
            "episode_id": key[2],
            "robot_type": row["robot_type"],
            "task": row.get("task") or before.get("instruction") or row.get("instruction"),
            "instruction": row.get("instruction") or before.get("instruction"),
            "success": row.get("success"),
            "steps": row.get("steps", before.get("steps")),
            "refused": row.get("refused", before.get("refused")),
            "began": row.get("started_at") or row.get("first_at") or before.get("began"),
            "ended": row.get("ended_at") or row.get("last_at") or before.get("ended"),
        }
    newest = sorted(found.values(), key=lambda row: row["began"].timestamp() if row["began"] else 0.0, reverse=True)
    return newest[:limit]


def _summed(source: Any) -> Select[Any]:
    whose = (source.customer_id, source.robot_id, source.episode_id)
    return select(
        *whose,
        func.max(source.robot_type).label("robot_type"),
        func.max(source.instruction).label("instruction"),
        func.count().label("steps"),
        func.sum(case((source.status == "success", 0), else_=1)).label("refused"),
        func.min(source.created_at).label("first_at"),
        func.max(source.created_at).label("last_at"),
    ).group_by(*whose)


def _owned(column: Any, customer_id: str | None) -> tuple[ColumnElement[bool], ...]:
    return () if customer_id is None else (column == customer_id,)


def _at(values: Sequence[float] | None, number: int) -> float | None:
    return float(values[number]) if values is not None and number < len(values) else None
