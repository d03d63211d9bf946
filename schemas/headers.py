"""Kafka headers: CloudEvents 1.0 binary mode, W3C trace context, and what a stage adds to a payload.

Values are ASCII. A stage never copies unknown headers: what goes out is built from an allow-list, so that
nothing that a robot wrote is taken for something that the gate wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

CONTENT_TYPE = "content-type"
PROTOBUF = "application/protobuf"
CE_ID = "ce_id"
CE_TYPE = "ce_type"
CE_SOURCE = "ce_source"
CE_TIME = "ce_time"
CE_SPECVERSION = "ce_specversion"
TRACEPARENT = "traceparent"
REQUEST_ID = "request_id"
ROW_ID = "row_id"
CORRELATION_ID = "correlation_id"
REPLY_TOPIC = "reply_topic"
REPLY_PARTITION = "reply_partition"
CUSTOMER_ID = "customer_id"
CONSENT_TIER = "consent_tier"
DEADLINE_MS = "deadline_ms"
SOURCE = "source"
REQUESTED_AT_MS = "requested_at_ms"
ATTEMPT = "attempt"
GATE_START_US = "gate_start_us"
GATE_END_US = "gate_end_us"
REPLAYED = "replayed"
EXPIRED = "expired"

#: Longest header value that is read; anything longer is treated as absent.
MAX_VALUE_BYTES = 512

RawHeaders = list[tuple[str, bytes]]
AnyHeaders = Mapping[str, bytes | str] | Iterable[tuple[str, bytes | str | None]] | None


def encode(values: Mapping[str, str | int]) -> RawHeaders:
    """ASCII headers in the order given. Raises UnicodeEncodeError for anything beyond ASCII."""
    return [(name, str(value).encode("ascii")) for name, value in values.items()]


def decode(headers: AnyHeaders) -> dict[str, str]:
    """Readable headers; the first of a repeated name wins; unreadable and oversized values are left out."""
    if headers is None:
        return {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    decoded: dict[str, str] = {}
    for name, value in pairs:
        raw = value.encode("utf-8", "replace") if isinstance(value, str) else value
        if raw is None or len(raw) > MAX_VALUE_BYTES or name in decoded:
            continue
        text = raw.decode("ascii", "replace")
        if text.isascii() and text.isprintable():
            decoded[name] = text
    return decoded


def integer(headers: Mapping[str, str], name: str) -> int | None:
    """A header as an integer, None where it is absent or not a decimal of at most 19 digits."""
    text = headers.get(name, "")
    digits = text.removeprefix("-")
    return int(text) if digits.isdigit() and len(digits) <= 19 else None


def cloud_event(*, event_type: str, event_id: str, source: str, now_s: float) -> dict[str, str]:
    """The CloudEvents attributes of a record (https://github.com/cloudevents/spec, Kafka binding, binary mode)."""
    return {
        CONTENT_TYPE: PROTOBUF,
        CE_SPECVERSION: "1.0",
        CE_ID: event_id,
        CE_TYPE: event_type,
        CE_SOURCE: source,
        CE_TIME: datetime.fromtimestamp(now_s, UTC).isoformat(timespec="milliseconds"),
    }


@dataclass(frozen=True, slots=True)
class Source:
    """A record's place in the log, written as topic/partition/offset."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Source:
        """Raises ValueError for anything that is not topic/partition/offset."""
        topic, partition, offset = text.split("/")
        return cls(topic, int(partition), int(offset))
