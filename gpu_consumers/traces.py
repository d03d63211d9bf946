"""A worker's two spans of a request: how long it waited for the device, and its batch on it."""

from __future__ import annotations

from gpu_consumers.jobs import Job
from runtime.tracing import Attributes, Kind, Tracing
from schemas import headers as h
from schemas.messages import Completion


def trace_of(tracing: Tracing, job: Job, completion: Completion) -> str:
    """Record both from the times of the completion; returns the traceparent for what comes of it.

    `queue` begins where the request gate ended, so that the way through the broker is in it.
    """
    times, parent = completion.times, job.envelope.carried.get(h.TRACEPARENT, "")
    came_us = times.gate_end_us or times.worker_received_us
    named: Attributes = {"vlastream.request_id": job.envelope.request_id[:64]}
    queue = tracing.start("queue", parent=parent, start_us=came_us, kind=Kind.CONSUMER, attributes=named)
    if not times.infer_start_us:
        queue.end(end_us=times.worker_published_us, error=completion.rejection.code)
        return queue.traceparent
    queue.end(end_us=times.infer_start_us)
    result = completion.result
    about: Attributes = {
        **named,
        "vlastream.deployment": result.deployment,
        "vlastream.worker_id": result.worker_id,
        "vlastream.batch_size": result.batch_size,
    }
    inference = tracing.start("inference", parent=parent, start_us=times.infer_start_us, attributes=about)
    inference.end(end_us=times.infer_end_us, error=completion.rejection.code)
    return inference.traceparent
