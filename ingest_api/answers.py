"""From an Outcome to the answer that a caller gets. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ingest_api.problems import Problem, fault
from schemas.codes import Code
from schemas.messages import ActionChunk, Outcome, SafetyMode, SafetyReport, StageTimes, Violation

#: The parts of a request's time, in order. Each begins where the one before ends.
PARTS = ("ingest", "request_gate", "queue", "inference", "results", "action_gate", "reply")
_MODE_NAMES = {
    SafetyMode.SAFETY_MODE_REJECT: "reject",
    SafetyMode.SAFETY_MODE_CLAMP: "clamp",
    SafetyMode.SAFETY_MODE_MONITOR: "monitor",
}


def timings_ms(times: StageTimes, *, received_us: int, answered_us: int) -> dict[str, float]:
    """Total and its parts in milliseconds; the parts add up to the total.

    received_us, answered_us: Unix epoch by this process's clock. Stages tell the time by the clocks of their
    own hosts: a mark before the one ahead of it, or after the end, is moved there, so that no part is negative.
    """
    marks = [
        received_us,
        times.gate_start_us,
        times.gate_end_us,
        times.infer_start_us,
        times.infer_end_us,
        times.action_gate_start_us,
        times.action_gate_end_us,
        answered_us,
    ]
    for i in range(1, len(marks)):
        marks[i] = min(max(marks[i], marks[i - 1]), max(answered_us, received_us))
    parts = {name: (marks[i + 1] - marks[i]) / 1000 for i, name in enumerate(PARTS)}
    return {"total": (marks[-1] - received_us) / 1000, **parts}


def chunk_document(outcome: Outcome, *, timings: dict[str, float], replayed: bool, expired: bool) -> dict[str, Any]:
    """The body of a 200. `actions.values` is (horizon, dim) in the units of `actions.units`."""
    chunk, request = outcome.chunk, outcome.request
    return {
        "request_id": request.request_id,
        "result_id": chunk.result.result_id,
        "model": request.model,
        "model_revision": chunk.result.model_revision,
        "robot_id": request.robot_id,
        "episode_id": request.episode_id or None,
        "step": request.step,
        "actions": _actions(chunk),
        "safety": safety_document(chunk.safety),
        "timings_ms": timings,
        "batch_size": chunk.result.batch_size,
        "replayed": replayed,
        "expired": expired,
    }


def rejection_problem(outcome: Outcome, *, replayed: bool, timings: dict[str, float]) -> Problem:
    """A refusal. Recorded means: it is the request's durable outcome, the same id gets it again."""
    rejection = outcome.rejection
    first = rejection.violations[0] if rejection.violations else None
    detail = f"{first.field}: {first.detail}" if first is not None else f"refused as {rejection.code}"
    members: dict[str, Any] = {"recorded": bool(outcome.row_id), "replayed": replayed, "timings_ms": timings}
    if rejection.HasField("safety"):
        members["safety"] = safety_document(rejection.safety)
    return Problem(
        rejection.code,
        detail,
        status=rejection.status if 400 <= rejection.status <= 599 else 500,
        violations=[fault(v.field, v.reason, v.detail) for v in rejection.violations],
        retry_after_s=rejection.retry_after_s,
        members=members,
    )


def expired_problem() -> Problem:
    """Actions that came after their deadline. Not recorded as a refusal: the outcome in the log is a chunk."""
    detail = "the actions came after their deadline and must not be executed: send a new observation"
    return Problem(
        Code.EXPIRED, detail, violations=[fault("options.ttl_ms", "expired", detail)], members={"recorded": False}
    )


def safety_document(report: SafetyReport) -> dict[str, Any]:
    return {
        "score": report.score,
        "mode": mode_name(report.mode),
        "modified": report.modified,
        "checks": dict(report.checks),
        "violations": _violations(report.violations),
    }


def mode_name(mode: SafetyMode.ValueType) -> str:
    return _MODE_NAMES.get(mode, "reject")


def _violations(violations: Sequence[Violation]) -> list[dict[str, str]]:
    return [{"field": v.field, "reason": v.reason, "detail": v.detail} for v in violations]


def _actions(chunk: ActionChunk) -> dict[str, Any]:
    matrix = chunk.actions
    return {
        "horizon": matrix.horizon,
        "dim": matrix.dim,
        "names": list(chunk.names),
        "units": list(chunk.units),
        "control_rate_hz": chunk.control_rate_hz,
        # float32 as it is: orjson writes its shortest decimal form.
        "values": np.array(matrix.values, dtype=np.float32).reshape(matrix.horizon, matrix.dim),
    }
