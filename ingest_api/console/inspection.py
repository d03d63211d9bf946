"""One request taken apart for its page: the row, and what its outcome in the log adds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest_api.answers import timings_ms
from ingest_api.console.log_frames import Place
from ingest_api.console.plots import Curve, Segment, bar, curve
from ingest_api.reading import Row
from schemas import headers as h
from schemas.cards import EmbodimentCard
from schemas.messages import Outcome
from schemas.topics import OUTCOMES

#: What the parts of `answers.PARTS` are called on the page.
_STAGES = {
    "ingest": "log to gate",
    "request_gate": "request gate",
    "queue": "log, queue, batch",
    "inference": "on the device",
    "results": "log to action gate",
    "action_gate": "action gate",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """stages: of the total in milliseconds. stages_whole: whether the marks of every stage are known.

    rows: the chunk by steps. checks: name, score, worst first. faults: field, reason, detail.
    """

    total_ms: float
    stages: list[Segment]
    stages_whole: bool
    curves: list[Curve] = field(default_factory=list)
    rows: list[list[float]] = field(default_factory=list)
    control_rate_hz: float = 0.0
    checks: list[tuple[str, float]] = field(default_factory=list)
    safety_mode: str = ""
    modified: bool = False
    faults: list[tuple[str, str, str]] = field(default_factory=list)


def place_of_request(row: Row) -> Place:
    return _place(row, h.Source(row["source_topic"], row["source_partition"], row["source_offset"]))


def place_of_outcome(row: Row) -> Place:
    return _place(row, h.Source(OUTCOMES, row["outcome_partition"], row["outcome_offset"]))


def inspected(row: Row, outcome: Outcome | None, card: EmbodimentCard | None) -> Inspection:
    """card: the robot as its deployment commands it, for names, units and limits; None where it is not known."""
    total_ms, stages = _stages(row, outcome)
    flags: dict[str, Any] = row["safety_flags"] or {}
    values = _matrix(row)
    names, units = _dims(values, outcome, card)
    limits = _limits(names, card)
    columns = list(zip(*values, strict=True)) if values else []
    spans: dict[str, list[float]] = {}
    for unit, column in zip(units, columns, strict=True):
        spans.setdefault(unit, []).extend(column)
    return Inspection(
        total_ms=total_ms,
        stages=bar(stages),
        stages_whole=outcome is not None,
        curves=[
            # Dimensions of one unit have one scale, so that what hardly moves looks as if it hardly moved.
            curve(name, unit, column, limits=limit, span=spans[unit])
            for name, unit, column, limit in zip(names, units, columns, limits, strict=True)
        ],
        rows=values,
        control_rate_hz=outcome.chunk.control_rate_hz if outcome is not None else 0.0,
        checks=sorted(flags.get("checks", {}).items(), key=lambda check: (check[1], check[0])),
        safety_mode=str(flags.get("mode", "")),
        modified=bool(flags.get("modified")),
        faults=_faults(row, outcome),
    )


def _place(row: Row, source: h.Source) -> Place:
    return Place(source=source, customer_id=row["customer_id"], robot_id=row["robot_id"], request_id=row["request_id"])


def _stages(row: Row, outcome: Outcome | None) -> tuple[float, list[tuple[str, float]]]:
    """Total and its parts in order, milliseconds. By the row alone only the worker's own parts are told apart."""
    if outcome is not None:
        requested_us = outcome.request.requested_at_ms * 1000
        ended_us = max(outcome.times.action_gate_end_us, outcome.times.gate_end_us, requested_us)
        parts = timings_ms(outcome.times, received_us=requested_us, answered_us=ended_us)
        return parts["total"], [(title, parts[name]) for name, title in _STAGES.items()]
    total = float(row["latency_total_ms"])
    queue, device = float(row["latency_queue_ms"] or 0), float(row["latency_gpu_ms"] or 0)
    rest = max(total - queue - device, 0.0)
    return total, [("log and gates", rest), ("wait for a batch", queue), ("on the device", device)]


def _matrix(row: Row) -> list[list[float]]:
    values, horizon, dim = row["actions"] or [], row["action_horizon"] or 0, row["action_dim"] or 0
    if not values or len(values) != horizon * dim:
        return []
    return [list(map(float, values[step * dim : (step + 1) * dim])) for step in range(horizon)]


def _dims(
    values: list[list[float]], outcome: Outcome | None, card: EmbodimentCard | None
) -> tuple[list[str], list[str]]:
    dim = len(values[0]) if values else 0
    if outcome is not None and len(outcome.chunk.names) == len(outcome.chunk.units) == dim:
        return list(outcome.chunk.names), list(outcome.chunk.units)
    if card is not None and len(card.actions) == dim:
        return [each.name for each in card.actions], [each.unit for each in card.actions]
    return [f"dimension {number}" for number in range(dim)], [""] * dim


def _limits(names: Sequence[str], card: EmbodimentCard | None) -> list[tuple[float | None, float | None]]:
    if card is None or [each.name for each in card.actions] != list(names):
        return [(None, None)] * len(names)
    return [(each.low, each.high) for each in card.actions]


def _faults(row: Row, outcome: Outcome | None) -> list[tuple[str, str, str]]:
    if outcome is not None and outcome.rejection.violations:
        return [(each.field, each.reason, each.detail) for each in outcome.rejection.violations]
    return [(name, str(reason), "") for name, reason in (row["validation_errors"] or {}).items()]
