"""What embeddings, feedback, episodes and consent become in Postgres: pure mappings from messages to columns."""

from __future__ import annotations

import math
import uuid
from datetime import datetime

from runtime import anonymize
from runtime.consent import Level
from schemas.cards import EmbodimentCard
from schemas.messages import Consent, Embedding, EpisodeEvent, EpisodeKind, Feedback, FeedbackKind
from sinks.rows import Row, name, text, timestamp

#: Mean luminance (0..1) from which on a scene is called so.
LIGHTING = ((0.7, "bright"), (0.35, "normal"), (0.15, "dim"), (0.0, "dark"))
#: Hour of the UTC day from which on it is called so.
TIMES_OF_DAY = ((22, "night"), (17, "evening"), (12, "afternoon"), (6, "morning"), (0, "night"))
ENVIRONMENTS = frozenset({"lab", "warehouse", "factory", "outdoor", "home", "office", "hospital", "retail", "other"})

_KINDS = {
    FeedbackKind.FEEDBACK_KIND_SUCCESS: "success_rating",
    FeedbackKind.FEEDBACK_KIND_SAFETY_RATING: "safety_rating",
    FeedbackKind.FEEDBACK_KIND_ACTION_CORRECTION: "action_correction",
    FeedbackKind.FEEDBACK_KIND_FAILURE_REPORT: "failure_report",
}
_MAX_COMMENT = 2000


def lighting(brightness: float | None) -> str:
    if brightness is None or not math.isfinite(brightness):
        return "unknown"
    return next((word for least, word in LIGHTING if brightness >= least), "dark")


def time_of_day(moment: datetime) -> str:
    return next(word for hour, word in TIMES_OF_DAY if moment.hour >= hour)


def environment(word: str) -> str | None:
    """A word of ENVIRONMENTS; None where nothing is stated, "other" for any other."""
    return (word if word in ENVIRONMENTS else "other") if word else None


def pending_row(embedding: Embedding) -> Row | None:
    """The instruction's vector on its way to its row of inference_log; None where there is none."""
    if not embedding.instruction:
        return None
    return {
        "id": uuid.UUID(embedding.row_id),
        "customer_id": name(embedding.customer_id),
        "instruction_embedding": list(embedding.instruction),
        "created_at": timestamp(embedding.requested_at_ms),
    }


def context_row(embedding: Embedding, workspace: Row | None) -> Row:
    """The row of context_metadata; success and environment follow from episodes and feedback."""
    at = timestamp(embedding.requested_at_ms)
    return {
        "id": uuid.UUID(embedding.row_id),
        "customer_id": name(embedding.customer_id),
        "robot_id": name(embedding.robot_id),
        "robot_type": name(embedding.robot_type),
        "request_id": name(embedding.request_id),
        "episode_id": name(embedding.episode_id) or None,
        "workspace_bounds": workspace,
        "lighting": lighting(embedding.brightness if embedding.HasField("brightness") else None),
        "time_of_day": time_of_day(at),
        "image_embedding": list(embedding.image) or None,
        "image_model": name(embedding.image_model) or None,
        "created_at": at,
    }


def feedback_row(feedback: Feedback, level: Level, at_ms: int) -> Row:
    """at_ms: broker's append time of the record."""
    corrected: Row | None = None
    if feedback.HasField("corrected"):
        matrix = feedback.corrected
        values = [value if math.isfinite(value) else None for value in matrix.values]
        corrected = {"horizon": matrix.horizon, "dim": matrix.dim, "values": values}
    return {
        "id": uuid.UUID(feedback.feedback_id),
        "inference_id": uuid.UUID(feedback.row_id),
        "request_id": name(feedback.request_id),
        "customer_id": name(feedback.customer_id),
        "robot_id": name(feedback.robot_id),
        "feedback_type": _KINDS[feedback.kind],
        "success": feedback.success if feedback.HasField("success") else None,
        "rating": feedback.rating if 1 <= feedback.rating <= 5 else None,
        "corrected_action": corrected,
        "failure_type": name(feedback.failure_type) or None,
        "comment": anonymize.text(text(feedback.comment, _MAX_COMMENT), level) or None,
        "created_by": name(feedback.who),
        "created_at": timestamp(at_ms),
    }


def episode_row(event: EpisodeEvent, level: Level, at_ms: int) -> Row:
    """One side of an episode's row: a start fills started_at, an end ended_at."""
    start = event.kind == EpisodeKind.EPISODE_KIND_START
    return {
        "customer_id": name(event.customer_id),
        "robot_id": name(event.robot_id),
        "episode_id": name(event.episode_id),
        "robot_type": name(event.robot_type),
        "task": anonymize.text(text(event.task, 500), level) or None,
        "environment_type": environment(event.environment_type),
        "success": event.success if event.HasField("success") and not start else None,
        "started_at": timestamp(at_ms) if start else None,
        "ended_at": None if start else timestamp(at_ms),
    }


def consent_row(consent: Consent, at_ms: int) -> Row:
    allowed = consent.tier if consent.tier in ("metadata", "full") else "none"
    return {
        "customer_id": name(consent.customer_id),
        "tier": allowed,
        "version": consent.version,
        "consented_at": timestamp(consent.consented_at_ms),
        "expires_at": timestamp(consent.expires_at_ms) if consent.expires_at_ms else None,
        "can_store_images": allowed == "full",
        "can_store_embeddings": allowed != "none",
        "can_use_for_training": allowed == "full",
        "anonymization_level": name(consent.anonymization) or None,
        "erased_before": timestamp(consent.erased_before_ms) if consent.erased_before_ms else None,
        "updated_at": timestamp(at_ms),
    }


def audit_row(consent: Consent, *, deleted: bool, offset: int, at_ms: int) -> Row:
    """Erasing and setting are told apart by the time that both carry."""
    erased = consent.erased_before_ms > 0 and consent.erased_before_ms == consent.at_ms
    action = "delete" if deleted else "erase" if erased else "set"
    return {
        "log_offset": offset,
        "customer_id": name(consent.customer_id),
        "action": action,
        "tier": name(consent.tier) or None,
        "version": consent.version or None,
        "expires_at": timestamp(consent.expires_at_ms) if consent.expires_at_ms else None,
        "anonymization_level": name(consent.anonymization) or None,
        "who": name(consent.who),
        "origin": name(consent.origin),
        "changed_at": timestamp(at_ms),
    }


def workspace_of(card: EmbodimentCard | None) -> Row | None:
    """{"min", "max", "unit"} of an embodiment's workspace; None where its card states none."""
    if card is None or card.workspace is None:
        return None
    return {"min": list(card.workspace.low), "max": list(card.workspace.high), "unit": "m"}
