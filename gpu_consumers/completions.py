"""What a worker writes to vla.results.v1: a completion with a result or a rejection, and its headers. Pure."""

from __future__ import annotations

import numpy as np

from gpu_consumers.jobs import Job
from schemas import headers as h
from schemas.cards import ModelCard
from schemas.codes import status_of
from schemas.conversions import RobotActions
from schemas.ids import result_id
from schemas.messages import ActionMatrix, Completion, InferenceResult, Rejection, Stage, Violation

EVENT_TYPE = "vla.completion.v1"


def result_completion(
    job: Job, chunk: RobotActions, *, deployment: str, revision: str, worker_id: str, batch_size: int
) -> Completion:
    """A result. chunk: (horizon, robot's dims), in the action space that the robot is commanded in."""
    horizon, dim = chunk.shape
    return Completion(
        row_id=job.envelope.row_id,
        request=job.summary,
        result=InferenceResult(
            result_id=result_id(job.envelope.row_id, deployment),
            chunk=ActionMatrix(horizon=horizon, dim=dim, values=chunk.ravel().tolist()),
            deployment=deployment,
            model_revision=revision,
            worker_id=worker_id,
            batch_size=batch_size,
            seed=job.seed,
        ),
        times=job.times,
    )


def rejected_completion(job: Job, code: str, detail: str, *, field: str = "", retry_after_s: float = 0.0) -> Completion:
    """A refusal by this worker; `detail` says what to do."""
    return Completion(
        row_id=job.envelope.row_id,
        request=job.summary,
        rejection=Rejection(
            stage=Stage.STAGE_GPU_WORKER,
            code=code,
            status=status_of(code),
            violations=[Violation(field=field, reason=code, detail=detail)],
            retry_after_s=retry_after_s,
        ),
        times=job.times,
    )


def completion_headers(job: Job, *, now_s: float) -> h.RawHeaders:
    return h.encode(
        {
            **h.cloud_event(event_type=EVENT_TYPE, event_id=job.envelope.row_id, source="gpu_consumers", now_s=now_s),
            **job.envelope.carried,
            **({h.TRACEPARENT: job.traceparent} if job.traceparent else {}),
        }
    )


def chunk_problem(chunk: object, card: ModelCard) -> str | None:
    """What is wrong with a policy's output for one request; None if it is a chunk. NaN is the action gate's matter."""
    if not isinstance(chunk, np.ndarray) or chunk.dtype != np.float32:
        return f"the policy gave {getattr(chunk, 'dtype', type(chunk).__name__)}, not float32"
    if chunk.shape != (card.horizon, card.action_dim):
        return f"the policy gave shape {chunk.shape}, not {(card.horizon, card.action_dim)}"
    return None
