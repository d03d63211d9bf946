"""Decodes and checks a record of vla.outcomes.v1: after this, every sink can write it."""

from __future__ import annotations

import math
import uuid

from google.protobuf.message import DecodeError

from runtime.errors import Poison
from runtime.kafka import Record
from schemas.codes import Code, status_of
from schemas.messages import ActionMatrix, Outcome, SafetyReport

#: 9999-12-31: later than this is no time that a database takes.
_MAX_TIME_MS = 253_402_214_400_000

SUCCESS = "success"


def decode_outcome(record: Record) -> Outcome:
    """The outcome in a record. Raises Poison for bytes that are none, or one that no row can be made of."""
    try:
        outcome = Outcome.FromString(record.value or b"")
    except DecodeError as error:
        raise Poison("undecodable", f"the value is not an Outcome: {error}") from error
    try:
        uuid.UUID(outcome.row_id)
    except ValueError as error:
        raise Poison("undecodable", "the outcome has no row_id that is a UUID") from error
    if outcome.WhichOneof("kind") is None:
        raise Poison("undecodable", "the outcome has neither actions nor a rejection")
    for name, time_ms in (
        ("requested_at_ms", outcome.request.requested_at_ms),
        ("decided_at_ms", outcome.decided_at_ms),
    ):
        if not 0 <= time_ms < _MAX_TIME_MS:
            raise Poison("undecodable", f"{name} is {time_ms}, which is not a time")
    if outcome.results_offset < 0:
        raise Poison("undecodable", f"results_offset is {outcome.results_offset}, which is no offset")
    if outcome.HasField("chunk") and not _is_matrix(outcome.chunk.actions):
        raise Poison("undecodable", "the chunk is not horizon * dim values")
    return outcome


def status(outcome: Outcome) -> str:
    """success, safety_rejected, rate_limited, timeout, superseded, error or rejected."""
    if outcome.HasField("chunk"):
        return SUCCESS
    code = outcome.rejection.code
    named = {
        Code.UNSAFE_ACTION: "safety_rejected",
        Code.QUOTA: "rate_limited",
        Code.EXPIRED: "timeout",
        Code.TIMEOUT: "timeout",
        Code.SUPERSEDED: "superseded",
    }
    for known, name in named.items():
        if code == known:
            return name
    return "error" if http_status(outcome) >= 500 else "rejected"


def http_status(outcome: Outcome) -> int:
    """The status that REST answers this outcome with."""
    if outcome.HasField("chunk"):
        return 200
    carried: int = outcome.rejection.status
    return carried if 100 <= carried <= 599 else status_of(outcome.rejection.code)


def safety_report(outcome: Outcome) -> SafetyReport | None:
    """The action gate's report; None where no chunk got that far."""
    if outcome.HasField("chunk"):
        return outcome.chunk.safety if outcome.chunk.HasField("safety") else None
    return outcome.rejection.safety if outcome.rejection.HasField("safety") else None


def validation_errors(outcome: Outcome) -> dict[str, str] | None:
    """{field: reason} of a rejection, the first reason of each field; None where there is none."""
    if not outcome.HasField("rejection"):
        return None
    errors: dict[str, str] = {}
    for violation in outcome.rejection.violations:
        errors.setdefault(violation.field or "request", violation.reason)
    return errors or None


def latencies_ms(outcome: Outcome) -> tuple[float, float | None, float | None]:
    """Total, queue and device time in milliseconds; the latter two None where the request saw no worker."""
    times = outcome.times
    total = float(max(outcome.decided_at_ms - outcome.request.requested_at_ms, 0))
    return (
        total,
        _between_ms(times.worker_received_us, times.infer_start_us),
        _between_ms(times.infer_start_us, times.infer_end_us),
    )


def score_of(report: SafetyReport) -> float:
    """The score within 0..1; what is not a number counts as 0."""
    return min(max(report.score, 0.0), 1.0) if math.isfinite(report.score) else 0.0


def checks_of(report: SafetyReport) -> dict[str, float]:
    """Check name -> 0..1, in the order of names."""
    return {name: value if math.isfinite(value) else 0.0 for name, value in sorted(report.checks.items())}


def _between_ms(start_us: int, end_us: int) -> float | None:
    # 0 stands for a stage that was never reached.
    return max(end_us - start_us, 0) / 1000 if start_us > 0 and end_us > 0 else None


def _is_matrix(matrix: ActionMatrix) -> bool:
    return bool(matrix.horizon >= 1 and matrix.dim >= 1 and len(matrix.values) == matrix.horizon * matrix.dim)
