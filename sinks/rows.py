"""What an outcome becomes in Postgres: pure mappings from the message to columns."""

from __future__ import annotations

import math
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from runtime import anonymize
from runtime.consent import Level
from runtime.kafka import Record
from schemas.codes import Code
from schemas.messages import ActionMatrix, Outcome, RequestSummary, SafetyMode, SafetyReport
from sinks.outcomes import (
    checks_of,
    http_status,
    latencies_ms,
    safety_report,
    score_of,
    status,
    validation_errors,
)

Row = dict[str, Any]

#: Longest name or id that is kept: refused requests bring any text, and an index entry has room for less than 2.7 kB.
MAX_NAME_CHARACTERS = 128
#: Longest instruction that is kept. Those that are accepted have at most 500 characters.
MAX_TEXT_CHARACTERS = 2000

#: Tiers with which more is kept than operation needs. A tier that this version does not know is none of them.
CONSENTED = frozenset({"metadata", "full"})

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

#: Category -> words that name it. The first word of an instruction that stands here decides.
CATEGORIES: dict[str, frozenset[str]] = {
    "pick": frozenset({"pick", "grasp", "grab", "lift", "take", "fetch"}),
    "place": frozenset({"place", "put", "drop", "insert", "stack", "set"}),
    "navigate": frozenset({"navigate", "go", "drive", "walk", "approach", "reach"}),
    "manipulate": frozenset({"manipulate", "rotate", "turn", "twist", "fold", "wipe", "pour", "move"}),
    "inspect": frozenset({"inspect", "look", "check", "examine", "find"}),
    "measure": frozenset({"measure", "weigh", "count"}),
    "open": frozenset({"open", "unlock", "uncover"}),
    "close": frozenset({"close", "shut", "lock", "cover"}),
    "push": frozenset({"push", "press", "slide", "shove"}),
    "pull": frozenset({"pull", "drag", "tug"}),
}
_CATEGORY_OF = {word: category for category, words in CATEGORIES.items() for word in words}


def category(instruction: str) -> str:
    """One of CATEGORIES, or "other"."""
    words = re.findall(r"[a-z]+", instruction.lower())
    return next((_CATEGORY_OF[word] for word in words if word in _CATEGORY_OF), "other")


def timestamp(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)


def inference_row(outcome: Outcome, record: Record, level: Level) -> Row:
    """The row of inference_log for a checked outcome (see sinks.outcomes.decode_outcome).

    level: how much is taken out of the instruction, which is kept with consent only.
    """
    request = outcome.request
    total_ms, queue_ms, device_ms = latencies_ms(outcome)
    report = safety_report(outcome)
    consented = request.consent_tier in CONSENTED
    instruction = anonymize.text(text(request.instruction, MAX_TEXT_CHARACTERS), level) if consented else None
    errors = validation_errors(outcome)
    return {
        **_who(outcome),
        "model_revision": None,
        "worker_id": None,
        "batch_size": None,
        "seed": request.options.seed if request.options.HasField("seed") else None,
        "instruction": instruction,
        "instruction_category": category(instruction) if instruction is not None else None,
        "image_shape": _image_shape(request) if consented else None,
        "image_count": len(request.images),
        **_result_columns(outcome),
        "safety_score": score_of(report) if report is not None else None,
        "safety_flags": _flags(report) if report is not None else None,
        "status": status(outcome),
        "code": name(outcome.rejection.code) if outcome.HasField("rejection") else None,
        "http_status": http_status(outcome),
        "validation_errors": {text(k, 200): text(v, 200) for k, v in errors.items()} if errors else None,
        "latency_total_ms": total_ms,
        "latency_queue_ms": queue_ms,
        "latency_gpu_ms": device_ms,
        "consent_tier": name(request.consent_tier) or "none",
        "source_topic": name(request.source.topic),
        "source_partition": request.source.partition,
        "source_offset": request.source.offset,
        "results_offset": outcome.results_offset,
        "outcome_partition": record.partition,
        "outcome_offset": record.offset,
        "decided_at": timestamp(outcome.decided_at_ms),
    }


def incident_row(outcome: Outcome, min_safety_score: float) -> Row | None:
    """The row of safety_incidents, None for an outcome that is no incident."""
    report = safety_report(outcome)
    if report is None:
        return None
    original: Row | None = None
    safe: Row | None = None
    if outcome.HasField("rejection"):
        if outcome.rejection.code != Code.UNSAFE_ACTION:
            return None
        taken = "rejected"
        violations = report.violations or outcome.rejection.violations
    elif report.modified:
        taken, violations = "clamped", report.violations
        if outcome.chunk.result.HasField("chunk"):
            original = _matrix(outcome.chunk.result.chunk)
        safe = _matrix(outcome.chunk.actions)
    elif score_of(report) < min_safety_score:
        taken, violations, original = "logged", report.violations, _matrix(outcome.chunk.actions)
    else:
        return None
    checks = checks_of(report)
    score = score_of(report)
    return {
        **_who(outcome),
        "severity": severity(score),
        "violation_type": name(min(checks, key=lambda check: checks[check])) if checks else "unknown",
        "violation_details": {
            "checks": {text(check, 200): value for check, value in checks.items()},
            "violations": [
                {"field": text(v.field, 200), "reason": text(v.reason, 200), "detail": text(v.detail, 500)}
                for v in list(violations)[:100]
            ],
        },
        "action_taken": taken,
        "original_action": original,
        "safe_action": safe,
        "safety_score": score,
    }


def severity(score: float) -> str:
    """critical at 0, high below 0.3, medium below 0.5, else low."""
    if score <= 0:
        return "critical"
    return "high" if score < 0.3 else "medium" if score < 0.5 else "low"


def text(value: str, limit: int) -> str:
    """Text that Postgres takes: without NUL, cut to `limit` characters."""
    return value[:limit].replace("\x00", "\N{REPLACEMENT CHARACTER}")


def name(value: str) -> str:
    return text(value, MAX_NAME_CHARACTERS)


def _who(outcome: Outcome) -> Row:
    """What inference_log and safety_incidents both say about the request."""
    request = outcome.request
    return {
        "id": uuid.UUID(outcome.row_id),
        "request_id": name(request.request_id),
        "customer_id": name(request.customer_id),
        "robot_id": name(request.robot_id),
        "robot_type": name(request.robot_type),
        "model": name(request.model),
        "deployment": name(outcome.chunk.result.deployment) if outcome.HasField("chunk") else None,
        "episode_id": name(request.episode_id) or None,
        "step": request.step,
        "created_at": timestamp(request.requested_at_ms),
    }


def _result_columns(outcome: Outcome) -> Row:
    if not outcome.HasField("chunk"):
        return {
            "action_vector": None,
            "action_magnitude": None,
            "actions": None,
            "action_horizon": None,
            "action_dim": None,
        }
    result, actions = outcome.chunk.result, outcome.chunk.actions
    first = [float(value) for value in actions.values[: actions.dim]]
    return {
        "model_revision": name(result.model_revision),
        "worker_id": name(result.worker_id),
        "batch_size": result.batch_size,
        "seed": result.seed,
        "action_vector": first,
        "action_magnitude": math.hypot(*first),
        "actions": list(actions.values),
        "action_horizon": actions.horizon,
        "action_dim": actions.dim,
    }


def _image_shape(request: RequestSummary) -> list[int] | None:
    """[height, width, 3] of the first image, in pixels; None where it did not decode."""
    if not request.images:
        return None
    width, height = request.images[0].width, request.images[0].height
    # Beyond 65535 no image format goes: such a number was never decoded from one.
    return [height, width, 3] if 0 < width <= 65_535 and 0 < height <= 65_535 else None


def _flags(report: SafetyReport) -> Row:
    return {
        "mode": mode(report.mode),
        "modified": report.modified,
        "checks": {text(check, 200): value for check, value in checks_of(report).items()},
    }


def mode(value: int) -> str:
    """reject, clamp, monitor, or "unspecified"."""
    known = {SafetyMode.SAFETY_MODE_REJECT: "reject", SafetyMode.SAFETY_MODE_CLAMP: "clamp"}
    known[SafetyMode.SAFETY_MODE_MONITOR] = "monitor"
    return next((word for number, word in known.items() if number == value), "unspecified")


def _matrix(matrix: ActionMatrix) -> Row:
    # JSON has no NaN and no infinity: what is not a number is null.
    values = [value if math.isfinite(value) else None for value in matrix.values]
    return {"horizon": matrix.horizon, "dim": matrix.dim, "values": values}
