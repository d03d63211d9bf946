"""Action chunks as a robot gets them, read from the Outcome of Kafka or the JSON of REST."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robot_client.errors import Refused, Violation
from schemas import headers as h
from schemas.messages import Outcome, SafetyMode

_SAFETY_MODE_NAMES = {
    SafetyMode.SAFETY_MODE_REJECT: "reject",
    SafetyMode.SAFETY_MODE_CLAMP: "clamp",
    SafetyMode.SAFETY_MODE_MONITOR: "monitor",
}


class BadReply(Exception):
    """A reply that cannot be read as an action chunk or a refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Safety:
    """What the action gate says of the chunk: score 0..1 is the minimum of the checks, each 0..1."""

    score: float
    mode: str
    modified: bool
    checks: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionChunk:
    """Actions to execute, one row a control step.

    actions: (horizon, action_dim) float32, read-only, in `units`; row i is due i / control_rate_hz seconds
    after the first. control_rate_hz is 0 where the reply does not say it.
    timings_ms: milliseconds by stage: request_gate, queue, inference, results, action_gate; over REST also
    ingest, reply and the total of all, as the API saw it.
    round_trip_ms: from the call of `infer` to this chunk, retries included, by the robot's monotonic clock.
    replayed: another attempt with this request id had been decided before. expired: its deadline had passed;
    `infer` never returns such a chunk.
    """

    actions: NDArray[np.float32]
    names: tuple[str, ...]
    units: tuple[str, ...]
    control_rate_hz: float
    safety: Safety
    request_id: str
    result_id: str
    model: str
    model_revision: str
    batch_size: int
    timings_ms: Mapping[str, float]
    round_trip_ms: float = 0.0
    attempts: int = 1
    replayed: bool = False
    expired: bool = False

    def with_total_ms(self, total_ms: float) -> ActionChunk:
        """The same, with how long the service took in all."""
        return replace(self, timings_ms={**self.timings_ms, "total": total_ms})


def chunk_from_outcome(outcome: Outcome, headers: Mapping[str, str], *, recorded: bool = True) -> ActionChunk:
    """The chunk of an outcome. Raises Refused for a rejection, BadReply for neither or for a wrong shape.

    recorded: whether a rejection stands in the log, as on Kafka all do.
    """
    request_id = outcome.request.request_id or headers.get(h.REQUEST_ID, "")
    kind = outcome.WhichOneof("kind")
    if kind == "rejection":
        rejection = outcome.rejection
        violations = tuple(Violation(v.field, v.reason, v.detail) for v in rejection.violations)
        raise Refused(
            _sentence(rejection.code, violations),
            code=rejection.code,
            status=rejection.status,
            request_id=request_id,
            violations=violations,
            recorded=recorded,
            retry_after_s=rejection.retry_after_s,
        )
    if kind != "chunk":
        raise BadReply(f"the outcome of request {request_id} holds neither actions nor a rejection")
    chunk, times = outcome.chunk, outcome.times
    matrix = chunk.actions
    return ActionChunk(
        actions=_actions(list(matrix.values), matrix.horizon, matrix.dim),
        names=tuple(chunk.names),
        units=tuple(chunk.units),
        control_rate_hz=chunk.control_rate_hz,
        safety=Safety(
            score=chunk.safety.score,
            mode=_SAFETY_MODE_NAMES.get(chunk.safety.mode, ""),
            modified=chunk.safety.modified,
            checks=dict(chunk.safety.checks),
        ),
        request_id=request_id,
        result_id=chunk.result.result_id,
        model=outcome.request.model,
        model_revision=chunk.result.model_revision,
        batch_size=chunk.result.batch_size,
        timings_ms={
            "request_gate": _ms(times.gate_start_us, times.gate_end_us),
            "queue": _ms(times.gate_end_us, times.infer_start_us),
            "inference": _ms(times.infer_start_us, times.infer_end_us),
            "results": _ms(times.infer_end_us, times.action_gate_start_us),
            "action_gate": _ms(times.action_gate_start_us, times.action_gate_end_us),
        },
        replayed=headers.get(h.REPLAYED) in ("1", "true"),
        expired=headers.get(h.EXPIRED) in ("1", "true"),
    )


def chunk_from_json(body: Mapping[str, Any]) -> ActionChunk:
    """The chunk in the body of a 200 reply. Raises BadReply for a body that is not one."""
    try:
        actions, safety = body["actions"], body["safety"]
        return ActionChunk(
            actions=_actions(actions["values"], actions["horizon"], actions["dim"]),
            names=tuple(actions["names"]),
            units=tuple(actions["units"]),
            control_rate_hz=float(actions.get("control_rate_hz", 0.0)),
            safety=Safety(
                score=float(safety["score"]),
                mode=str(safety["mode"]),
                modified=bool(safety["modified"]),
                checks={str(name): float(score) for name, score in safety["checks"].items()},
            ),
            request_id=str(body["request_id"]),
            result_id=str(body["result_id"]),
            model=str(body["model"]),
            model_revision=str(body["model_revision"]),
            batch_size=int(body["batch_size"]),
            timings_ms={str(name): float(ms) for name, ms in body["timings_ms"].items() if ms is not None},
            replayed=bool(body["replayed"]),
            expired=bool(body["expired"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise BadReply(f"the reply is not an action chunk: {type(error).__name__} {error}") from error


def refusal_from_json(body: Mapping[str, Any], *, status: int, request_id: str, retry_after_s: float | None) -> Refused:
    """The refusal in a problem document (RFC 9457); a body without a code is named by its status."""
    listed = body.get("violations")
    violations = tuple(
        Violation(str(v.get("field", "")), str(v.get("reason", "")), str(v.get("detail", "")))
        for v in (listed if isinstance(listed, list) else [])
        if isinstance(v, dict)
    )
    code = str(body.get("code") or f"http_{status}")
    detail = str(body.get("detail") or body.get("title") or "")
    return Refused(
        _sentence(code, violations, detail),
        code=code,
        status=status,
        request_id=str(body.get("request_id") or request_id),
        violations=violations,
        recorded=bool(body.get("recorded", False)),
        retry_after_s=retry_after_s or 0.0,
    )


def _ms(began_us: int, ended_us: int) -> float:
    """Milliseconds between the clocks of two hosts, which may disagree: at least 0."""
    return max(ended_us - began_us, 0) / 1000


def _actions(values: Any, horizon: int, dim: int) -> NDArray[np.float32]:
    """(horizon, dim) float32, read-only. Raises BadReply for another count of values or for NaN and infinities."""
    actions = np.array(values, dtype=np.float32)
    if horizon < 1 or dim < 1 or actions.size != horizon * dim:
        raise BadReply(f"{actions.size} values are not {horizon} steps of {dim}")
    if not np.isfinite(actions).all():
        raise BadReply("the chunk holds NaN or infinities: nothing of it may be executed")
    actions = actions.reshape(horizon, dim)
    actions.setflags(write=False)
    return actions


def _sentence(code: str, violations: tuple[Violation, ...], detail: str = "") -> str:
    first = violations[0] if violations else None
    reason = f"{first.field} {first.reason}: {first.detail}".strip() if first is not None else detail
    return f"refused as {code}" + (f" ({reason})" if reason else "")
