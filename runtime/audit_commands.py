"""`vlastream audit tail`: what was done, read from the log itself: audit, stops and resumes, consent."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from confluent_kafka import OFFSET_END, Consumer, KafkaException, TopicPartition
from google.protobuf.message import DecodeError

from runtime.audit import event_of_consent, event_of_control
from runtime.dlq.letters import parse_moment
from runtime.errors import Unavailable
from runtime.kafka import Record, build_consumer, check_consumed, end_positions, record_of, wait_for_kafka
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from schemas.ids import customer_named
from schemas.messages import AuditEvent, Consent, Control
from schemas.topics import AUDIT, CONSENT, CONTROL

Say = Callable[[str], None]
_CLIENT_ID = "vlastream-audit"
_TIMEOUT_S = 15.0
_TOPICS = (AUDIT, CONTROL, CONSENT)


def tail(settings: Settings, *, follow: bool, customer: str | None, since: str, say: Say, warn: Say) -> None:
    """Print one line an event, oldest first. Raises Fatal for a `since` that is no time, Unavailable without Kafka.

    warn: told that nothing was found, which a mistyped customer looks like as well.
    """
    since_ms = parse_moment(since, time.time())
    wanted = customer_named(customer) if customer is not None else None
    wait_for_kafka(settings, timeout_s=_TIMEOUT_S)
    consumer = build_consumer(settings, _CLIENT_ID, group=None)
    try:
        ends = _seek(consumer, since_ms)
        past = sorted(
            (event for event in _events(consumer, ends) if event.at_ms >= since_ms), key=lambda event: event.at_ms
        )
        found = [event for event in past if concerns(event, wanted)]
        for event in found:
            say(line_of(event))
        if not found and not follow:
            whose = f" of customer {customer}" if customer is not None else ""
            warn(f"nothing{whose} since {since}: --since looks further back, `vlastream customers list` has the names")
        if follow:
            with _until_told() as told:
                _follow(consumer, wanted, told, say)
    finally:
        consumer.close()


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Set by Ctrl-C or SIGTERM, the ways to end --follow: an exception out of librdkafka's poll is none of ours."""
    told = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, lambda *_: told.set()) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _follow(consumer: Consumer, customer: str | None, told: threading.Event, say: Say) -> None:
    while not told.is_set():
        message = consumer.poll(0.5)
        new = event_of(record_of(message)) if message is not None and check_consumed(message) else None
        if new is not None and concerns(new, customer):
            say(line_of(new))


def event_of(record: Record) -> AuditEvent | None:
    """What a record of any of the three topics tells; None for one that cannot be read, and for a tombstone."""
    if record.value is None:
        return None
    try:
        if record.topic == CONTROL:
            return event_of_control(Control.FromString(record.value), record)
        if record.topic == CONSENT:
            return event_of_consent(Consent.FromString(record.value))
        return AuditEvent.FromString(record.value)
    except DecodeError:
        return None


def line_of(event: AuditEvent) -> str:
    when = datetime.fromtimestamp(event.at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    details = " ".join(f"{name}={event.details[name]}" for name in sorted(event.details))
    line = f"{when}  {event.action:<18} {event.target}  by {event.actor}  from {event.origin or 'unknown'}  {details}"
    # The topics' writers do not get to move a terminal's cursor.
    return "".join(c if c.isprintable() else "?" for c in line.rstrip())


def concerns(event: AuditEvent, customer: str | None) -> bool:
    return customer is None or event.customer_id == customer


def _seek(consumer: Consumer, since_ms: int) -> dict[tuple[str, int], int]:
    """Begin at that time; where each partition ends now."""
    ends = {(topic, number): end for topic in _TOPICS for number, end in end_positions(consumer, topic).items()}
    times = [TopicPartition(topic, number, max(since_ms, 0)) for topic, number in ends]
    try:
        found = consumer.offsets_for_times(times, timeout=_TIMEOUT_S)
    except KafkaException as error:
        raise Unavailable(f"Kafka does not answer: {error.args[0].str()}") from error
    starts = []
    for place in found:
        end = ends[place.topic, place.partition]
        # Nothing as young as that: go on from the end.
        start = place.offset if 0 <= place.offset < end else (OFFSET_END if end == 0 else end)
        starts.append(TopicPartition(place.topic, place.partition, start))
        if start in (end, OFFSET_END):
            del ends[place.topic, place.partition]
    consumer.assign(starts)
    return ends


def _events(consumer: Consumer, ends: dict[tuple[str, int], int]) -> Iterator[AuditEvent]:
    """Up to the ends."""
    silence = Deadline(_TIMEOUT_S)
    left = dict(ends)
    while left:
        for (topic, number), end in list(left.items()):
            # A compacted topic may have nothing in its last places: the position says that they were passed.
            if consumer.position([TopicPartition(topic, number)])[0].offset >= end:
                del left[topic, number]
        if not left:
            return
        message = consumer.poll(0.2)
        if message is None or not check_consumed(message):
            if silence.passed:
                raise Unavailable(f"the log was not read to its end: nothing came for {_TIMEOUT_S:.0f} s")
            continue
        silence = Deadline(_TIMEOUT_S)
        event = event_of(record_of(message))
        if event is not None:
            yield event
