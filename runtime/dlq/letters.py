"""A dead letter as it is read back, and which letters a command is about. Pure: no broker, no clock."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import UTC, datetime

from runtime.dead_letters import CONNECT_PREFIX, CUT_BYTES, DLQ_PREFIX, GROUP, REASON, TIMESTAMP_MS
from runtime.errors import Fatal
from runtime.kafka import Record
from schemas import headers as h
from schemas.topics import DEAD_LETTER_SUFFIX, dead_letter_topic

_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"(\d{1,6})([smhd])")


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of a dead letter topic, and the record that died."""

    #: Where the letter lies.
    place: h.Source
    #: Where the dead record lay. None: the letter's own headers are missing, so nobody knows.
    source: h.Source | None
    reason: str
    stage: str
    group: str
    #: Append time of the letter, and of the dead record (None: not known). Unix epoch in milliseconds.
    died_at_ms: int
    appended_at_ms: int | None
    #: Bytes of the value that the letter had no room for.
    cut_bytes: int
    key: bytes | None
    value: bytes | None
    #: Headers of the dead record, without ours.
    original_headers: h.RawHeaders
    #: All of them.
    raw_headers: h.RawHeaders

    @property
    def topic(self) -> str:
        """Topic of the dead record, as the name of the letter's topic says."""
        return self.place.topic.removesuffix(DEAD_LETTER_SUFFIX)

    @property
    def request_id(self) -> str:
        return h.decode(self.original_headers).get(h.REQUEST_ID, "")


def letter_of(record: Record) -> Letter:
    """Read a record of a dead letter topic; what its headers do not say is empty."""
    ours = {name: value for name, value in record.raw_headers if _is_ours(name)}
    text = {name: value.decode("ascii", "replace") for name, value in ours.items()}
    partition = h.integer(text, CONNECT_PREFIX + "partition")
    offset = h.integer(text, CONNECT_PREFIX + "offset")
    topic = text.get(CONNECT_PREFIX + "topic", "")
    known = topic == record.topic.removesuffix(DEAD_LETTER_SUFFIX) and partition is not None and offset is not None
    return Letter(
        place=record.source,
        source=h.Source(topic, partition, offset) if known and partition is not None and offset is not None else None,
        reason=text.get(REASON, ""),
        stage=text.get(CONNECT_PREFIX + "stage", ""),
        group=text.get(GROUP, ""),
        died_at_ms=record.timestamp_ms,
        appended_at_ms=h.integer(text, TIMESTAMP_MS),
        cut_bytes=h.integer(text, CUT_BYTES) or 0,
        key=record.key,
        value=record.value,
        original_headers=[(name, value) for name, value in record.raw_headers if not _is_ours(name)],
        raw_headers=record.raw_headers,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which letters are meant: all that fit every filter that is set."""

    #: Topics of dead records; with or without `.dlq` they mean the same.
    topics: Collection[str] = ()
    reasons: Collection[str] = ()
    #: Of the letter's append time, Unix epoch in milliseconds: from `since_ms` on, before `until_ms`.
    since_ms: int | None = None
    until_ms: int | None = None
    #: Of the letter or of the record that died.
    places: Collection[h.Source] = field(default=())

    @property
    def filters(self) -> bool:
        return bool(self.topics or self.reasons or self.places) or (self.since_ms, self.until_ms) != (None, None)

    def wants_topic(self, dead_letters: str) -> bool:
        """Whether a dead letter topic can hold any of them."""
        return self._topic_fits(dead_letters) and (
            not self.places or any(dead_letters in (p.topic, dead_letter_topic(p.topic)) for p in self.places)
        )

    def matches(self, letter: Letter) -> bool:
        return (
            self._topic_fits(letter.place.topic)
            and (not self.reasons or letter.reason in self.reasons)
            and (self.since_ms is None or letter.died_at_ms >= self.since_ms)
            and (self.until_ms is None or letter.died_at_ms < self.until_ms)
            and (not self.places or letter.place in self.places or letter.source in self.places)
        )

    def _topic_fits(self, dead_letters: str) -> bool:
        return not self.topics or any(dead_letters in (topic, dead_letter_topic(topic)) for topic in self.topics)


def parse_moment(text: str, now_s: float) -> int:
    """Unix epoch in milliseconds of an ISO time (UTC where it names no zone) or of `90s`, `15m`, `2h`, `3d` ago.

    Raises Fatal for anything else.
    """
    if ago := _AGO.fullmatch(text.strip()):
        return round((now_s - int(ago[1]) * _UNIT_S[ago[2]]) * 1000)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise Fatal(
            f"{text!r} is no time: write 2026-01-31T12:00:00Z, or 90s, 15m, 2h, 3d for that long ago"
        ) from error
    return round((moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def parse_place(text: str) -> h.Source:
    """Raises Fatal for anything but TOPIC/PARTITION/OFFSET."""
    try:
        place = h.Source.parse(text)
    except ValueError as error:
        raise Fatal(f"{text!r} is no place: write TOPIC/PARTITION/OFFSET, as `vlastream dlq list` does") from error
    return place


def _is_ours(name: str) -> bool:
    return name.startswith((CONNECT_PREFIX, DLQ_PREFIX))
