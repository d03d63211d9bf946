"""What records become in the two Parquet datasets: pure mappings, and what consent leaves out.

Tier `none`: no observation at all, and outcomes keep operational columns only. Tier `metadata`: observations
without pixels. Tier `full`: everything. A tier that this version does not know counts as `none`.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import DecodeError

from runtime.errors import Poison
from runtime.kafka import Record
from schemas import headers as h
from schemas.messages import ActionMatrix, Image, ImageEncoding, InferenceRequest, RequestSummary
from sinks.marks import Entry
from sinks.outcomes import (
    checks_of,
    decode_outcome,
    http_status,
    latencies_ms,
    safety_report,
    score_of,
    status,
    validation_errors,
)
from sinks.rows import Row, mode, timestamp
from sinks.store import Skip

#: The one series of vla.outcomes.v1: the offset of the completion that an outcome was made from.
RESULTS_SERIES = "results"
#: Latest time that Arrow and Python both take.
_MAX_TIME_MS = 253_402_214_400_000

_ENCODINGS = {
    ImageEncoding.IMAGE_ENCODING_JPEG: "jpeg",
    ImageEncoding.IMAGE_ENCODING_PNG: "png",
    ImageEncoding.IMAGE_ENCODING_RGB8: "rgb8",
}


def observation_entry(record: Record, deployment: str) -> Entry[Row]:
    """A record of an accepted topic as a row of observations. Raises Poison; Skip("consent") for tier none."""
    headers = record.headers
    try:
        row_id = str(uuid.UUID(headers[h.ROW_ID]))
        source = h.Source.parse(headers[h.SOURCE])
        customer_id = headers[h.CUSTOMER_ID]
        requested_at_ms = h.integer(headers, h.REQUESTED_AT_MS)
    except (KeyError, ValueError) as error:
        raise Poison("missing_headers", f"not written by the gate: {error}") from error
    if requested_at_ms is None or not 0 <= requested_at_ms < _MAX_TIME_MS:
        raise Poison("missing_headers", f"not written by the gate: no {h.REQUESTED_AT_MS}")
    tier = headers.get(h.CONSENT_TIER, "none")
    if tier not in ("metadata", "full"):
        raise Skip("consent")
    try:
        request = InferenceRequest.FromString(record.value or b"")
    except DecodeError as error:
        raise Poison("undecodable", f"the value is not an InferenceRequest: {error}") from error
    row = {
        "row_id": row_id,
        "request_id": request.request_id,
        "customer_id": customer_id,
        "robot_id": request.robot_id,
        "robot_type": request.robot_type,
        "model": request.model,
        "episode_id": request.episode_id,
        "step": request.step,
        "consent_tier": tier,
        "requested_at": timestamp(requested_at_ms),
        "captured_at_ms": request.captured_at_ms,
        "source_topic": source.topic,
        "source_partition": source.partition,
        "source_offset": source.offset,
        "log_partition": record.partition,
        "log_offset": record.offset,
        "deployment": deployment,
        "instruction": request.instruction,
        "state": list(request.state),
        "images": [_image(image, pixels=tier == "full") for image in request.images],
        **_executed(request.executed if request.HasField("executed") else None),
        "seed": request.options.seed if request.options.HasField("seed") else None,
    }
    # The gate forwards the requests of a partition in order, so what is not above the last was forwarded before.
    return lake_entry(record, row, f"{source.topic}/{source.partition}", source.offset)


def outcome_entry(record: Record) -> Entry[Row]:
    """A record of vla.outcomes.v1 as a row of outcomes. Raises Poison."""
    outcome = decode_outcome(record)
    request = outcome.request
    total_ms, queue_ms, device_ms = latencies_ms(outcome)
    report = safety_report(outcome)
    chunk = outcome.chunk if outcome.HasField("chunk") else None
    consented = request.consent_tier in ("metadata", "full")
    row = {
        **_summary(request),
        "row_id": str(uuid.UUID(outcome.row_id)),
        "log_partition": record.partition,
        "log_offset": record.offset,
        "status": status(outcome),
        "code": outcome.rejection.code if chunk is None else None,
        "http_status": http_status(outcome),
        "validation_errors": list((validation_errors(outcome) or {}).items()) or None,
        "decided_at": timestamp(outcome.decided_at_ms),
        "results_offset": outcome.results_offset,
        "deployment": chunk.result.deployment if chunk else None,
        "model_revision": chunk.result.model_revision if chunk else None,
        "worker_id": chunk.result.worker_id if chunk else None,
        "batch_size": chunk.result.batch_size if chunk else None,
        "seed": chunk.result.seed if chunk else None,
        "actions": list(chunk.actions.values) if chunk else None,
        "action_horizon": chunk.actions.horizon if chunk else None,
        "action_dim": chunk.actions.dim if chunk else None,
        "action_names": list(chunk.names) if chunk else None,
        "action_units": list(chunk.units) if chunk else None,
        "control_rate_hz": chunk.control_rate_hz if chunk else None,
        "policy_actions": list(chunk.result.chunk.values) if chunk and chunk.result.HasField("chunk") else None,
        "safety_score": score_of(report) if report else None,
        "safety_mode": mode(report.mode) if report else None,
        "safety_modified": report.modified if report else None,
        "safety_checks": list(checks_of(report).items()) if report else None,
        "latency_total_ms": total_ms,
        "latency_queue_ms": queue_ms,
        "latency_gpu_ms": device_ms,
        "instruction": request.instruction if consented else None,
        "state": list(request.state) if consented else None,
        **_executed(request.executed if consented and request.HasField("executed") else None),
    }
    return lake_entry(record, row, RESULTS_SERIES, outcome.results_offset)


def lake_entry(record: Record, row: Row, series: str, number: int) -> Entry[Row]:
    return Entry(
        offset=record.offset,
        row=row,
        series=series,
        number=number,
        size_bytes=len(record.value or b""),
        timestamp_ms=record.timestamp_ms,
        cut=datetime.fromtimestamp(record.timestamp_ms / 1000, UTC).date().isoformat(),
    )


def _summary(request: RequestSummary) -> Row:
    return {
        "request_id": request.request_id,
        "customer_id": request.customer_id,
        "robot_id": request.robot_id,
        "robot_type": request.robot_type,
        "model": request.model,
        "episode_id": request.episode_id,
        "step": request.step,
        "consent_tier": request.consent_tier or "none",
        "requested_at": timestamp(request.requested_at_ms),
        "captured_at_ms": request.captured_at_ms,
        "source_topic": request.source.topic,
        "source_partition": request.source.partition,
        "source_offset": request.source.offset,
    }


def _image(image: Image, *, pixels: bool) -> dict[str, Any]:
    claimed = pixels and image.HasField("claim")
    return {
        "camera": image.camera,
        "encoding": _ENCODINGS.get(image.encoding, "unspecified"),
        "width": image.width,
        "height": image.height,
        "data": image.data if pixels and image.HasField("data") else None,
        "claim_uri": image.claim.uri if claimed else None,
        "claim_sha256": image.claim.sha256 if claimed else None,
        "claim_bytes": image.claim.bytes if claimed else None,
    }


def _executed(matrix: ActionMatrix | None) -> Row:
    return {
        "executed": list(matrix.values) if matrix is not None else None,
        "executed_horizon": matrix.horizon if matrix is not None else None,
        "executed_dim": matrix.dim if matrix is not None else None,
    }
