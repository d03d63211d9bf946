"""From an accepted record to what the policy takes: headers, message, images. Pure."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from PIL import Image as Pillow

from gpu_consumers.policies.contract import Observation
from runtime.errors import Poison, Reject
from runtime.kafka import Record
from schemas import headers as h
from schemas.cards import ModelCard
from schemas.codes import Code
from schemas.ids import default_seed
from schemas.messages import Image, ImageEncoding, InferenceRequest, RequestSummary, StageTimes
from schemas.summary import summarize

#: Copied from the accepted record to the completion, where they are there.
CARRIED = (
    h.REQUEST_ID, h.ROW_ID, h.CORRELATION_ID, h.REPLY_TOPIC, h.REPLY_PARTITION, h.CUSTOMER_ID, h.CONSENT_TIER,
    h.DEADLINE_MS, h.SOURCE, h.REQUESTED_AT_MS, h.TRACEPARENT, h.ATTEMPT, h.GATE_START_US, h.GATE_END_US,
)  # fmt: skip
#: Pixels a side; the gate lets nothing larger through.
MAX_SIDE = 2048
_FORMATS = {ImageEncoding.IMAGE_ENCODING_JPEG: "JPEG", ImageEncoding.IMAGE_ENCODING_PNG: "PNG"}


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the gate wrote into the headers of an accepted record."""

    row_id: str
    request_id: str
    customer_id: str
    consent_tier: str
    requested_at_ms: int
    deadline_ms: int
    source: h.Source
    carried: dict[str, str]


@dataclass(slots=True)
class Job:
    """One accepted request on its way through the three stages."""

    envelope: Envelope
    request: InferenceRequest
    summary: RequestSummary
    #: Call once its completion is acknowledged.
    done: Callable[[], None]
    #: Monotonic seconds.
    received_s: float
    deadline_s: float
    times: StageTimes = field(default_factory=StageTimes)
    #: What the policy's `prepare` made of it.
    prepared: Any = None
    #: Of the span that its completion belongs to, once there is one.
    traceparent: str = ""

    @property
    def robot(self) -> str:
        """Customer and robot: what order and superseding go by."""
        return f"{self.envelope.customer_id}\x1f{self.request.robot_id}"

    @property
    def seed(self) -> int:
        options = self.request.options
        return options.seed if options.HasField("seed") else default_seed(self.request.request_id)


def read_envelope(record: Record) -> Envelope:
    """Raises Poison for a record without the headers that the gate puts on every accepted request."""
    headers = record.headers
    try:
        source = h.Source.parse(headers[h.SOURCE])
        requested_at_ms, deadline_ms = h.integer(headers, h.REQUESTED_AT_MS), h.integer(headers, h.DEADLINE_MS)
        if requested_at_ms is None or deadline_ms is None:
            raise ValueError("requested_at_ms and deadline_ms must be integers")
        return Envelope(
            row_id=headers[h.ROW_ID],
            request_id=headers[h.REQUEST_ID],
            customer_id=headers[h.CUSTOMER_ID],
            consent_tier=headers[h.CONSENT_TIER],
            requested_at_ms=requested_at_ms,
            deadline_ms=deadline_ms,
            source=source,
            carried={name: headers[name] for name in CARRIED if name in headers},
        )
    except (KeyError, ValueError) as error:
        raise Poison("headers", f"not a record of the gate: header {error}") from error


def read_request(record: Record) -> InferenceRequest:
    """Raises Poison for a value that is no InferenceRequest."""
    try:
        return InferenceRequest.FromString(record.value or b"")
    except DecodeError as error:
        raise Poison("undecodable", f"the value is no InferenceRequest: {error}") from error


def new_job(
    envelope: Envelope, request: InferenceRequest, done: Callable[[], None], *, received_s: float, now_s: float
) -> Job:
    """A job whose deadline is moved from the wall clock (`now_s`, Unix epoch) to the monotonic one (`received_s`)."""
    job = Job(
        envelope=envelope,
        request=request,
        summary=RequestSummary(),
        done=done,
        received_s=received_s,
        deadline_s=received_s + envelope.deadline_ms / 1000 - now_s,
        times=StageTimes(
            gate_start_us=h.integer(envelope.carried, h.GATE_START_US) or 0,
            gate_end_us=h.integer(envelope.carried, h.GATE_END_US) or 0,
            worker_received_us=int(now_s * 1e6),
        ),
    )
    set_summary(job)
    return job


def set_summary(job: Job, sizes: Sequence[tuple[int, int]] | None = None) -> None:
    job.summary = summarize(
        job.request,
        customer_id=job.envelope.customer_id,
        consent_tier=job.envelope.consent_tier,
        requested_at_ms=job.envelope.requested_at_ms,
        deadline_ms=job.envelope.deadline_ms,
        source=job.envelope.source,
        sizes=sizes,
    )


def observe(job: Job, card: ModelCard) -> Observation:
    """Decode what the policy looks at, note the sizes in the summary, and let go of the encoded pixels.

    Raises Reject where the request does not fit the card or an image does not decode.
    """
    request = job.request
    if len(request.state) != card.state_dim:
        raise Reject(
            Code.EMBODIMENT_MISMATCH, f"state has {len(request.state)} values, not {card.state_dim}", field="state"
        )
    images: dict[str, NDArray[np.uint8]] = {}
    sizes: list[tuple[int, int]] = []
    for image in request.images:
        if image.camera in card.cameras + card.optional_cameras:
            pixels = decode_image(image)
            images[image.camera] = pixels
            sizes.append((pixels.shape[1], pixels.shape[0]))
        else:
            sizes.append((0, 0))
    missing = [camera for camera in card.cameras if camera not in images]
    if missing:
        raise Reject(Code.EMBODIMENT_MISMATCH, f"camera {missing[0]} is missing", field=f"image.{missing[0]}")
    set_summary(job, sizes)
    del request.images[:]
    return Observation(
        request_id=request.request_id,
        instruction=request.instruction,
        images=images,
        state=np.array(request.state, dtype=np.float32),
        seed=job.seed,
    )


def decode_image(image: Image) -> NDArray[np.uint8]:
    """Pixels as uint8 (height, width, 3) RGB. Raises Reject for anything that does not decode."""
    where = f"image.{image.camera}"
    if image.WhichOneof("content") != "data":
        raise Reject(Code.INVALID_IMAGE, "send the image inline: this deployment reads no claims", field=where)
    if image.encoding == ImageEncoding.IMAGE_ENCODING_RGB8:
        width, height = image.width, image.height
        if not 0 < width <= MAX_SIDE or not 0 < height <= MAX_SIDE or len(image.data) != width * height * 3:
            raise Reject(Code.INVALID_IMAGE, "rgb8 data must hold height * width * 3 bytes", field=where)
        return np.frombuffer(image.data, dtype=np.uint8).reshape(height, width, 3)
    format_name = _FORMATS.get(image.encoding)
    if format_name is None:
        raise Reject(Code.INVALID_IMAGE, "encoding must be jpeg, png or rgb8", field=where)
    try:
        with Pillow.open(io.BytesIO(image.data), formats=(format_name,)) as opened:
            if max(opened.size) > MAX_SIDE:
                raise Reject(Code.INVALID_IMAGE, f"a side has more than {MAX_SIDE} pixels", field=where)
            # `convert` copies what is RGB already, and `asarray` decodes by itself.
            return np.asarray(opened if opened.mode == "RGB" else opened.convert("RGB"))
    # Pillow's decoders raise many kinds of errors for bytes that are no image.
    except (OSError, ValueError, SyntaxError, Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise Reject(Code.INVALID_IMAGE, f"the image does not decode as {format_name.lower()}", field=where) from error
