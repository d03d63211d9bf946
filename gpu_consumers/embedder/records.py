"""From an accepted record, or a query, to what is to be embedded and back to the record that answers. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from gpu_consumers.jobs import decode_image, read_envelope, read_request
from runtime import anonymize
from runtime.consent import ConsentList
from runtime.errors import Poison, Reject
from runtime.kafka import Record
from schemas import headers as h
from schemas.messages import Embedding, EmbeddingQuery, SourceRecord
from schemas.topics import EMBEDDINGS, QUERIES, REPLIES

_MOST_CHARACTERS = 500
#: Rec. 709 weights of red, green and blue.
_LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
#: Brightness is looked at on every so many-th pixel of each side: some 64 of them.
_SAMPLES = 64


@dataclass(slots=True)
class Item:
    """One thing to embed. `answer` gets its vectors; whatever is missing stays away."""

    answer: Embedding
    customer_id: str
    requested_at_ms: int
    text: str
    #: Of a request; the first of them is embedded.
    pixels: NDArray[np.uint8] | None
    #: What the pixels were decoded from: the cache goes by it.
    encoded: bytes
    topic: str
    partition: int
    key: bytes
    headers: h.RawHeaders
    done: Callable[[], None]

    @property
    def is_query(self) -> bool:
        return self.topic != EMBEDDINGS


def read_item(record: Record, consents: ConsentList, done: Callable[[], None]) -> Item | None:
    """None for what must not be embedded. Raises Poison."""
    if record.topic == QUERIES:
        return _query(record, done)
    envelope = read_envelope(record)
    if envelope.consent_tier not in ("metadata", "full"):
        return None
    if consents.is_erased(envelope.customer_id, envelope.requested_at_ms):
        return None
    request = read_request(record)
    image = request.images[0] if request.images else None
    try:
        pixels = decode_image(image) if image is not None else None
    except Reject:
        # The gate has looked at it, and the worker refuses what it cannot read: here it is only not embedded.
        pixels = None
    answer = Embedding(
        row_id=envelope.row_id,
        customer_id=envelope.customer_id,
        robot_id=request.robot_id,
        robot_type=request.robot_type,
        request_id=request.request_id,
        episode_id=request.episode_id,
        consent_tier=envelope.consent_tier,
        requested_at_ms=envelope.requested_at_ms,
        source=SourceRecord(
            topic=envelope.source.topic, partition=envelope.source.partition, offset=envelope.source.offset
        ),
        accepted_topic=record.topic,
        accepted_partition=record.partition,
        accepted_offset=record.offset,
    )
    if pixels is not None:
        answer.brightness = brightness(pixels)
    return Item(
        answer=answer,
        customer_id=envelope.customer_id,
        requested_at_ms=envelope.requested_at_ms,
        text=anonymize.text(request.instruction, consents.level(envelope.customer_id)),
        pixels=pixels,
        encoded=image.data if image is not None and pixels is not None else b"",
        topic=EMBEDDINGS,
        partition=envelope.source.partition,
        key=request.robot_id.encode(),
        headers=_headers("vla.embedding.v1", envelope.row_id, {h.CUSTOMER_ID: envelope.customer_id}),
        done=done,
    )


def brightness(pixels: NDArray[np.uint8]) -> float:
    """Mean luminance, 0..1."""
    height, width = pixels.shape[:2]
    sampled = pixels[:: max(height // _SAMPLES, 1), :: max(width // _SAMPLES, 1)]
    return float((sampled @ _LUMINANCE).mean() / 255)


def _query(record: Record, done: Callable[[], None]) -> Item | None:
    headers = record.headers
    partition = h.integer(headers, h.REPLY_PARTITION)
    correlation_id = headers.get(h.CORRELATION_ID, "")
    if headers.get(h.REPLY_TOPIC) != REPLIES or partition is None or partition < 0 or not correlation_id:
        raise Poison("missing_headers", "a query without an address for its answer")
    try:
        text = EmbeddingQuery.FromString(record.value or b"").text
    except DecodeError as error:
        raise Poison("undecodable", "the value is no EmbeddingQuery") from error
    if not 0 < len(text) <= _MOST_CHARACTERS:
        raise Poison("undecodable", f"a query has 1 to {_MOST_CHARACTERS} characters")
    return Item(
        answer=Embedding(),
        customer_id=headers.get(h.CUSTOMER_ID, ""),
        requested_at_ms=record.timestamp_ms,
        text=text,
        pixels=None,
        encoded=b"",
        topic=REPLIES,
        partition=partition,
        key=b"",
        headers=_headers("vla.embedding.v1", correlation_id, {h.CORRELATION_ID: correlation_id}),
        done=done,
    )


def _headers(event_type: str, event_id: str, others: dict[str, str | int]) -> h.RawHeaders:
    attributes = h.cloud_event(event_type=event_type, event_id=event_id, source="embedder", now_s=0)
    return h.encode({**attributes, **others})
