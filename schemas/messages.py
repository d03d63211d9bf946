"""The generated message classes, under one import."""

from __future__ import annotations

from schemas.vla.v1.gate_pb2 import LastChunk, ReplyAddress, RequestRecord, TableValue
from schemas.vla.v1.inference_pb2 import (
    ActionChunk,
    ActionMatrix,
    Claim,
    Completion,
    Control,
    Image,
    ImageEncoding,
    InferenceRequest,
    InferenceResult,
    Options,
    Outcome,
    Rejection,
    RequestSummary,
    SafetyMode,
    SafetyReport,
    SourceRecord,
    Stage,
    StageTimes,
    Violation,
    WorkerHeartbeat,
)

__all__ = [
    "ActionChunk",
    "ActionMatrix",
    "Claim",
    "Completion",
    "Control",
    "Image",
    "ImageEncoding",
    "InferenceRequest",
    "InferenceResult",
    "LastChunk",
    "Options",
    "Outcome",
    "Rejection",
    "ReplyAddress",
    "RequestRecord",
    "RequestSummary",
    "SafetyMode",
    "SafetyReport",
    "SourceRecord",
    "Stage",
    "StageTimes",
    "TableValue",
    "Violation",
    "WorkerHeartbeat",
]
