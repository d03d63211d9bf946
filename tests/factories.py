"""Messages and records that are valid by default; name what should be otherwise."""

from __future__ import annotations

import io
import itertools
import uuid
from collections.abc import Sequence
from typing import Any

from PIL import Image as PillowImage

from runtime.kafka import Record
from schemas import headers as h
from schemas import ids
from schemas.codes import Code, status_of
from schemas.messages import (
    ActionChunk,
    ActionMatrix,
    Completion,
    Image,
    ImageEncoding,
    InferenceRequest,
    InferenceResult,
    Outcome,
    Rejection,
    RequestSummary,
    SafetyMode,
    SafetyReport,
    SourceRecord,
    Stage,
    StageTimes,
    Violation,
)
from schemas.topics import OUTCOMES, REQUESTS, accepted_topic

CUSTOMER = "customer-1"
ROBOT_TYPE = "tabletop_arm"
MODEL = "tabletop"
DEPLOYMENT = "tabletop-r1"
INSTRUCTION = "pick up the red block"
#: 2026-11-23 12:00:00 UTC
NOON_MS = 1_795_435_200_000

_numbers = itertools.count()


def request_id() -> str:
    """A new one at each call, the same in each run."""
    return str(uuid.uuid5(ids.NAMESPACE, f"request {next(_numbers)}"))


def jpeg(width: int = 64, height: int = 64, seed: int = 0) -> bytes:
    """A picture with something on it: a gradient with a square that moves with the seed."""
    picture = PillowImage.linear_gradient("L").resize((width, height)).convert("RGB")
    corner = seed % max(width // 2, 1), seed % max(height // 2, 1)
    picture.paste((200, 40, 40), (*corner, corner[0] + width // 4, corner[1] + height // 4))
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=85)
    return data.getvalue()


def inference_request(**changes: Any) -> InferenceRequest:
    """A request with one 64x64 JPEG, 8 state values and 7 actions' worth of embodiment."""
    fields: dict[str, Any] = {
        "request_id": request_id(),
        "robot_id": "robot-1",
        "robot_type": ROBOT_TYPE,
        "model": MODEL,
        "instruction": INSTRUCTION,
        "images": [
            Image(
                camera="base",
                encoding=ImageEncoding.IMAGE_ENCODING_JPEG,
                width=64,
                height=64,
                data=jpeg(),
            )
        ],
        "state": [0.5] * 8,
        "episode_id": "episode-1",
        "step": 3,
        "captured_at_ms": NOON_MS,
        "ttl_ms": 2000,
    }
    return InferenceRequest(**{**fields, **changes})


def request_summary(**changes: Any) -> RequestSummary:
    fields: dict[str, Any] = {
        "request_id": request_id(),
        "robot_id": "robot-1",
        "robot_type": ROBOT_TYPE,
        "model": MODEL,
        "instruction": INSTRUCTION,
        "images": [
            RequestSummary.ImageInfo(
                camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, width=64, height=48, bytes=1000
            )
        ],
        "state": [0.5] * 8,
        "episode_id": "episode-1",
        "step": 3,
        "captured_at_ms": NOON_MS,
        "ttl_ms": 2000,
        "customer_id": CUSTOMER,
        "consent_tier": "full",
        "requested_at_ms": NOON_MS,
        "deadline_ms": NOON_MS + 2000,
        "source": SourceRecord(topic=REQUESTS, partition=0, offset=next(_numbers)),
    }
    return RequestSummary(**{**fields, **changes})


def matrix(horizon: int = 8, dim: int = 7, values: Sequence[float] | None = None) -> ActionMatrix:
    """(horizon, dim), row-major; small equal steps by default."""
    return ActionMatrix(horizon=horizon, dim=dim, values=values if values is not None else [0.01] * (horizon * dim))


def safety_report(score: float = 0.95, **changes: Any) -> SafetyReport:
    fields: dict[str, Any] = {
        "score": score,
        "mode": SafetyMode.SAFETY_MODE_REJECT,
        "checks": {"range": score, "finite": 1.0},
    }
    return SafetyReport(**{**fields, **changes})


def stage_times(**changes: int) -> StageTimes:
    """Worker 2 ms after the gate, 3 ms in its queue, 10 ms on the device."""
    at = NOON_MS * 1000
    fields = {
        "gate_start_us": at,
        "gate_end_us": at + 1000,
        "worker_received_us": at + 3000,
        "infer_start_us": at + 6000,
        "infer_end_us": at + 16_000,
        "worker_published_us": at + 17_000,
    }
    return StageTimes(**{**fields, **changes})


def inference_result(**changes: Any) -> InferenceResult:
    fields: dict[str, Any] = {
        "result_id": str(uuid.uuid5(ids.NAMESPACE, "result")),
        "deployment": DEPLOYMENT,
        "model_revision": "0123456789ab",
        "worker_id": "worker-1",
        "batch_size": 4,
        "seed": 7,
    }
    return InferenceResult(**{**fields, **changes})


def rejection(code: Code | str = Code.INVALID_INSTRUCTION, **changes: Any) -> Rejection:
    fields: dict[str, Any] = {
        "stage": Stage.STAGE_REQUEST_GATE,
        "code": str(code),
        "status": status_of(code),
        "violations": [Violation(field="instruction", reason="too_short", detail="use at least three words")],
    }
    return Rejection(**{**fields, **changes})


def _kind(fields: dict[str, Any], *, default: dict[str, Any]) -> dict[str, Any]:
    """Fields of a message with its `kind`: the default one unless the caller names another."""
    return fields if fields.keys() & {"result", "chunk", "rejection"} else {**fields, **default}


def completion(**changes: Any) -> Completion:
    """A worker's result; pass `rejection=` for a refusal."""
    fields: dict[str, Any] = {"row_id": str(uuid.uuid4()), "request": request_summary(), "times": stage_times()}
    return Completion(**_kind({**fields, **changes}, default={"result": inference_result(chunk=matrix())}))


def action_chunk(**changes: Any) -> ActionChunk:
    fields: dict[str, Any] = {
        "actions": matrix(),
        "names": ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"],
        "units": ["m", "m", "m", "rad", "rad", "rad", "1"],
        "control_rate_hz": 10.0,
        "safety": safety_report(),
        "result": inference_result(),
    }
    return ActionChunk(**{**fields, **changes})


def outcome(**changes: Any) -> Outcome:
    """Actions that were delivered; pass `rejection=` for a refusal."""
    fields: dict[str, Any] = {
        "row_id": str(uuid.uuid4()),
        "request": request_summary(),
        "times": stage_times(),
        "results_offset": 0,
        "decided_at_ms": NOON_MS + 20,
    }
    return Outcome(**_kind({**fields, **changes}, default={"chunk": action_chunk()}))


def record(
    value: bytes | None,
    *,
    topic: str = OUTCOMES,
    partition: int = 0,
    offset: int = 0,
    timestamp_ms: int = NOON_MS + 30,
    headers: dict[str, str | int] | None = None,
    key: bytes = b"robot-1",
) -> Record:
    return Record(
        topic=topic,
        partition=partition,
        offset=offset,
        key=key,
        value=value,
        timestamp_ms=timestamp_ms,
        raw_headers=h.encode(headers or {}),
    )


def accepted_headers(changes: dict[str, str | int] | None = None) -> dict[str, str | int]:
    """What the gate writes beside an accepted request."""
    return {
        h.REQUEST_ID: request_id(),
        h.ROW_ID: str(uuid.uuid4()),
        h.CUSTOMER_ID: CUSTOMER,
        h.CONSENT_TIER: "full",
        h.DEADLINE_MS: NOON_MS + 2000,
        h.REQUESTED_AT_MS: NOON_MS,
        h.SOURCE: f"{REQUESTS}/0/0",
        **(changes or {}),
    }


def accepted_record(
    request: InferenceRequest | None = None, *, offset: int = 0, headers: dict[str, str | int] | None = None
) -> Record:
    """A record of the accepted topic of DEPLOYMENT; `headers` are those that should be otherwise."""
    return record(
        (request or inference_request()).SerializeToString(),
        topic=accepted_topic(DEPLOYMENT),
        offset=offset,
        headers=accepted_headers(headers),
    )
