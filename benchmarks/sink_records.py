"""Records as the gate writes them, for a sink to read: as large and as full as those of a running fleet."""

from __future__ import annotations

import os
import time
import uuid

from benchmarks.frames import ROBOT_TYPE
from schemas import headers as h
from schemas.messages import (
    ActionChunk,
    ActionMatrix,
    Image,
    ImageEncoding,
    InferenceRequest,
    InferenceResult,
    Outcome,
    RequestSummary,
    SafetyMode,
    SafetyReport,
    StageTimes,
)
from schemas.messages import SourceRecord as Source
from schemas.topics import REQUESTS

_INSTRUCTION = "pick up the red block and put it into the bowl"
_CUSTOMER = str(uuid.UUID(int=1))
_HORIZON, _DIM = 8, 7
_CHECKS = ("dims", "finite", "range", "velocity", "jerk", "workspace", "continuity", "gripper")


def outcome(results_offset: int, consent_tier: str) -> bytes:
    """An Outcome with a chunk of 8 x 7; `results_offset` must grow within a partition."""
    now_ms = int(time.time() * 1000)
    now_us = now_ms * 1000
    request_id = str(uuid.uuid4())
    summary = RequestSummary(
        request_id=request_id,
        robot_id=f"arm-{results_offset % 50}",
        robot_type=ROBOT_TYPE,
        model="instant-1",
        instruction=_INSTRUCTION,
        images=[
            RequestSummary.ImageInfo(
                camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, width=640, height=480, bytes=50_000
            )
        ],
        state=[0.5] * 8,
        episode_id="episode",
        step=results_offset,
        captured_at_ms=now_ms,
        ttl_ms=2000,
        customer_id=_CUSTOMER,
        consent_tier=consent_tier,
        requested_at_ms=now_ms,
        deadline_ms=now_ms + 2000,
        source=Source(topic=REQUESTS, partition=0, offset=results_offset),
    )
    chunk = ActionChunk(
        actions=ActionMatrix(horizon=_HORIZON, dim=_DIM, values=[0.0123] * (_HORIZON * _DIM)),
        names=["dx", "dy", "dz", "drx", "dry", "drz", "gripper"],
        units=["m", "m", "m", "rad", "rad", "rad", "1"],
        control_rate_hz=10,
        safety=SafetyReport(
            score=0.97,
            mode=SafetyMode.SAFETY_MODE_REJECT,
            checks={name: 0.97 + 0.01 * (name == "dims") for name in _CHECKS},
        ),
        result=InferenceResult(
            result_id=str(uuid.uuid4()),
            deployment="instant-1",
            model_revision="0" * 16,
            worker_id="gpu-0",
            batch_size=4,
        ),
    )
    times = StageTimes(
        gate_start_us=now_us,
        gate_end_us=now_us + 1000,
        worker_received_us=now_us + 2000,
        infer_start_us=now_us + 3000,
        infer_end_us=now_us + 30_000,
        worker_published_us=now_us + 31_000,
        action_gate_start_us=now_us + 32_000,
        action_gate_end_us=now_us + 33_000,
    )
    return Outcome(
        row_id=str(uuid.uuid4()),
        request=summary,
        chunk=chunk,
        times=times,
        results_offset=results_offset,
        decided_at_ms=now_ms,
    ).SerializeToString()


def observation(frame_bytes: int, number: int, partitions: int) -> tuple[bytes, dict[str, bytes]]:
    """Value and headers of an accepted request of a robot that consented to all.

    Its picture is random bytes: a sink does not decode, no two frames are equal, and a JPEG compresses as little.
    """
    now_ms = int(time.time() * 1000)
    request_id = str(uuid.uuid4())
    request = InferenceRequest(
        request_id=request_id,
        robot_id=f"arm-{number % 50}",
        robot_type=ROBOT_TYPE,
        model="instant-1",
        instruction=_INSTRUCTION,
        images=[Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=os.urandom(frame_bytes))],
        state=[0.5] * 8,
        episode_id="episode",
        step=number,
        captured_at_ms=now_ms,
        ttl_ms=2000,
    )
    headers = {
        h.REQUEST_ID: request_id,
        h.ROW_ID: str(uuid.uuid4()),
        h.CUSTOMER_ID: _CUSTOMER,
        h.CONSENT_TIER: "full",
        h.DEADLINE_MS: str(now_ms + 2000),
        h.REQUESTED_AT_MS: str(now_ms),
        h.SOURCE: f"{REQUESTS}/{number % partitions}/{number // partitions}",
    }
    return request.SerializeToString(), {name: value.encode() for name, value in headers.items()}
