"""Decodes records besides outcomes: embeddings, feedback, episodes and consent. Raises Poison for what is none."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from runtime.errors import Poison
from runtime.kafka import Record
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM
from schemas.messages import Consent, Embedding, EpisodeEvent, EpisodeKind, Feedback, FeedbackKind

MessageT = TypeVar("MessageT", bound=Message)
#: 9999-12-31: later than this is no time that a database takes.
_MAX_TIME_MS = 253_402_214_400_000


def decode_embedding(record: Record) -> Embedding:
    found = _decoded(record, Embedding)
    _check(_is_uuid(found.row_id), "the embedding has no row_id that is a UUID")
    _check(len(found.instruction) in (0, INSTRUCTION_EMBEDDING_DIM), "the instruction's vector has a wrong length")
    _check(len(found.image) in (0, IMAGE_EMBEDDING_DIM), "the image's vector has a wrong length")
    _check(0 <= found.requested_at_ms < _MAX_TIME_MS, "requested_at_ms is not a time")
    return found


def decode_feedback(record: Record) -> Feedback:
    found = _decoded(record, Feedback)
    _check(_is_uuid(found.feedback_id) and _is_uuid(found.row_id), "the feedback has no ids that are UUIDs")
    _check(found.kind != FeedbackKind.FEEDBACK_KIND_UNSPECIFIED, "the feedback has no kind")
    return found


def decode_episode(record: Record, customer_of: Callable[[Record], str]) -> EpisodeEvent:
    """customer_of: whose record it is by its topic and headers; on a fleet's topic the fleet, whatever it says."""
    found = _decoded(record, EpisodeEvent)
    found.customer_id = customer_of(record)
    _check(bool(found.customer_id and found.robot_id and found.episode_id), "it names no customer, robot or episode")
    _check(found.kind != EpisodeKind.EPISODE_KIND_UNSPECIFIED, "it is neither a start nor an end")
    return found


def decode_consent(record: Record) -> Consent:
    """A tombstone is a consent without a tier."""
    found = _decoded(record, Consent)
    found.customer_id = (record.key or b"").decode("utf-8", "replace")
    _check(bool(found.customer_id), "the record has no key")
    for time_ms in (found.consented_at_ms, found.expires_at_ms, found.erased_before_ms):
        _check(0 <= time_ms < _MAX_TIME_MS, "a time of it is not a time")
    return found


def _decoded(record: Record, kind: type[MessageT]) -> MessageT:
    try:
        return kind.FromString(record.value or b"")
    except DecodeError as error:
        raise Poison("undecodable", f"the value is not of kind {kind.__name__}: {error}") from error


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Poison("undecodable", otherwise)


def _is_uuid(text: Any) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True
