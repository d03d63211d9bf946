"""Dead letters: a record that can never be processed, kept whole under `<topic>.dlq` with the reason beside it.

Headers are those of Kafka Connect, so that its tools read them, and three of our own (`dlq.*`). A dead letter
is written at least once: the stage passes the record over only after the broker has the letter.
"""

from __future__ import annotations

import threading
import traceback
from pathlib import Path

from runtime.errors import Unavailable
from runtime.kafka import MAX_RECORD_BYTES, Record
from runtime.metrics import Metrics
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.topics import dead_letter_topic

CONNECT_PREFIX = "__connect.errors."
DLQ_PREFIX = "dlq."
REASON = "dlq.reason"
GROUP = "dlq.group"
#: Broker's append time of the dead record, Unix epoch in milliseconds.
TIMESTAMP_MS = "dlq.timestamp_ms"
#: How many bytes of the value were cut off, because record and headers together would not fit.
CUT_BYTES = "dlq.cut_bytes"

_MAX_TRACE_BYTES = 4096
#: Kept free for headers: the original ones are let in up to half of it.
_HEADER_ROOM_BYTES = 64 * 1024


def dead_letter_headers(
    record: Record, *, reason: str, stage: str, group: str, error: BaseException, task_id: int = 0
) -> h.RawHeaders:
    """The record's own headers, then why it died. Headers that claim to be ours are left out of the former.

    `stage` says what was tried ("decode", "row", ...), `group` which consumer group tried it.
    """
    ours = {
        CONNECT_PREFIX + "topic": record.topic,
        CONNECT_PREFIX + "partition": record.partition,
        CONNECT_PREFIX + "offset": record.offset,
        CONNECT_PREFIX + "connector.name": group,
        CONNECT_PREFIX + "task.id": task_id,
        CONNECT_PREFIX + "stage": stage,
        CONNECT_PREFIX + "class.name": _raised_in(error),
        CONNECT_PREFIX + "exception.class.name": f"{type(error).__module__}.{type(error).__qualname__}",
        CONNECT_PREFIX + "exception.message": str(error)[: h.MAX_VALUE_BYTES],
        CONNECT_PREFIX + "exception.stacktrace": stack_trace(error)[:_MAX_TRACE_BYTES],
        REASON: reason,
        GROUP: group,
        TIMESTAMP_MS: record.timestamp_ms,
    }
    theirs: h.RawHeaders = []
    room = _HEADER_ROOM_BYTES // 2
    for name, value in record.raw_headers:
        room -= len(name) + len(value)
        if room >= 0 and not name.startswith((CONNECT_PREFIX, DLQ_PREFIX)):
            theirs.append((name, value))
    return theirs + [(name, str(value).encode("ascii", "replace")) for name, value in ours.items()]


def stack_trace(error: BaseException) -> str:
    """One line a frame, innermost last, with paths shortened to package and file."""
    lines = []
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename)
        lines.append(f"{path.parent.name}/{path.name}:{frame.lineno} in {frame.name}")
    return "\n".join(lines)


async def send_dead_letter(
    publisher: PublisherPort,
    metrics: Metrics,
    record: Record,
    *,
    reason: str,
    stage: str,
    group: str,
    error: BaseException,
) -> Delivered:
    """Write the dead letter and wait until the broker has it. Raises Retry, Unavailable or Fatal."""
    headers, value = _letter(record, reason=reason, stage=stage, group=group, error=error)
    where = await publisher.send(dead_letter_topic(record.topic), value, key=record.key, headers=headers)
    metrics.dead_letters.labels(record.topic, reason).inc()
    return where


def write_dead_letter(
    publisher: PublisherPort,
    metrics: Metrics,
    record: Record,
    *,
    reason: str,
    stage: str,
    group: str,
    error: BaseException,
    timeout_s: float = 35.0,
) -> None:
    """The same for a thread. Raises Unavailable after `timeout_s`, Retry, Unavailable or Fatal before."""
    headers, value = _letter(record, reason=reason, stage=stage, group=group, error=error)
    settled = threading.Event()
    failures: list[Exception] = []

    def report(where: Delivered | None, failure: Exception | None) -> None:
        if failure is not None:
            failures.append(failure)
        settled.set()

    topic = dead_letter_topic(record.topic)
    publisher.publish(topic, value, key=record.key, headers=headers, on_delivery=report)
    if not settled.wait(timeout_s):
        raise Unavailable(f"Kafka took no dead letter for {topic} within {timeout_s:.0f} s")
    if failures:
        raise failures[0]
    metrics.dead_letters.labels(record.topic, reason).inc()


def _letter(
    record: Record, *, reason: str, stage: str, group: str, error: BaseException
) -> tuple[h.RawHeaders, bytes | None]:
    headers = dead_letter_headers(record, reason=reason, stage=stage, group=group, error=error)
    limit = MAX_RECORD_BYTES - _HEADER_ROOM_BYTES - len(record.key or b"")
    if record.value is None or len(record.value) <= limit:
        return headers, record.value
    headers.append((CUT_BYTES, str(len(record.value) - limit).encode()))
    return headers, record.value[:limit]


def _raised_in(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{Path(frames[-1].filename).parent.name}.{Path(frames[-1].filename).stem}" if frames else ""
