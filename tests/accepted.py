"""Records as the gate writes them for GPU workers."""

from __future__ import annotations

import time

from schemas import headers as h
from schemas.ids import row_id
from schemas.messages import Image, ImageEncoding, InferenceRequest, Options
from tests.pictures import jpeg

_JPEG = jpeg(96, 72)


def request(
    request_id: str = "r-1",
    *,
    robot: str = "robot-1",
    instruction: str = "push the red block",
    latest_only: bool = False,
    seed: int | None = None,
    robot_type: str = "test_arm",
) -> InferenceRequest:
    """A request that fits tests.cards.model()."""
    options = Options(latest_only=latest_only)
    if seed is not None:
        options.seed = seed
    return InferenceRequest(
        request_id=request_id,
        robot_id=robot,
        robot_type=robot_type,
        model="test-model",
        instruction=instruction,
        images=[Image(camera="base", encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=_JPEG)],
        state=[0.25, 0.5],
        ttl_ms=2000,
        options=options,
    )


def headers_of(
    message: InferenceRequest, *, partition: int = 1, offset: int = 7, ttl_s: float = 60.0, customer: str = "c-1"
) -> dict[str, str | int]:
    """The gate's headers for a request that lies in `partition` of the requests topic."""
    now_ms = int(time.time() * 1000)
    source = h.Source("vla.requests.v1", partition, offset)
    return {
        h.REQUEST_ID: message.request_id,
        h.ROW_ID: row_id(customer, message.robot_id, message.request_id, source),
        h.CORRELATION_ID: f"correlation-{message.request_id}",
        h.REPLY_TOPIC: "vla.replies.v1",
        h.REPLY_PARTITION: 3,
        h.CUSTOMER_ID: customer,
        h.CONSENT_TIER: "full",
        h.DEADLINE_MS: now_ms + int(ttl_s * 1000),
        h.SOURCE: str(source),
        h.REQUESTED_AT_MS: now_ms,
        h.TRACEPARENT: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        h.ATTEMPT: 1,
        h.GATE_START_US: now_ms * 1000,
        h.GATE_END_US: now_ms * 1000 + 500,
    }
