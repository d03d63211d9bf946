"""All of a request but its pixels: what rides in every completion and outcome."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.headers import Source
from schemas.messages import InferenceRequest, RequestSummary, SourceRecord


def summarize(
    request: InferenceRequest,
    *,
    customer_id: str,
    consent_tier: str,
    requested_at_ms: int,
    deadline_ms: int,
    source: Source,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> RequestSummary:
    """The summary of a request.

    sizes: (width, height) in pixels of each image as it was decoded, in the request's order. None, or (0, 0)
    for one image: not decoded, and the size that the robot claims is not repeated.
    """
    summary = RequestSummary(
        request_id=request.request_id,
        robot_id=request.robot_id,
        robot_type=request.robot_type,
        model=request.model,
        instruction=request.instruction,
        state=request.state,
        episode_id=request.episode_id,
        step=request.step,
        captured_at_ms=request.captured_at_ms,
        ttl_ms=request.ttl_ms,
        customer_id=customer_id,
        consent_tier=consent_tier,
        requested_at_ms=requested_at_ms,
        deadline_ms=deadline_ms,
        source=SourceRecord(topic=source.topic, partition=source.partition, offset=source.offset),
    )
    for index, image in enumerate(request.images):
        width, height = sizes[index] if sizes is not None and index < len(sizes) else (0, 0)
        claimed = image.WhichOneof("content") == "claim"
        summary.images.add(
            camera=image.camera,
            encoding=image.encoding,
            width=width,
            height=height,
            bytes=image.claim.bytes if claimed else len(image.data),
            claim_uri=image.claim.uri if claimed else "",
        )
    if request.HasField("executed"):
        summary.executed.CopyFrom(request.executed)
    if request.HasField("options"):
        summary.options.CopyFrom(request.options)
    return summary
