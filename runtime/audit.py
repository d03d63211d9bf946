"""The audit log: one record for each thing that somebody did, on its way through vla.audit.v1 to audit_log.

Stops and resumes (vla.control.v1) and consent (vla.consent.v1) are records of their own and are read from there.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping

from runtime.errors import Unavailable
from runtime.kafka import Record
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.messages import AuditEvent, Consent, Control
from schemas.topics import AUDIT

#: Of keys and customers that nobody in particular used or guessed at.
NOBODY = "nobody"
_SOURCE = "operator@"
_ACK_TIMEOUT_S = 5.0


def event(
    action: str,
    *,
    actor: str,
    origin: str,
    target: str,
    customer_id: str = "",
    details: Mapping[str, object] | None = None,
) -> AuditEvent:
    """A new event of now. details: shown as text; never a secret."""
    return AuditEvent(
        event_id=str(uuid.uuid4()),
        at_ms=round(time.time() * 1000),
        customer_id=customer_id,
        actor=actor,
        action=action,
        target=target,
        origin=origin,
        details={name: str(value) for name, value in (details or {}).items()},
    )


async def publish_event(publisher: PublisherPort, told: AuditEvent, *, source: str) -> Delivered:
    """Write an event and wait until the broker has it. Raises Retry, Unavailable or Fatal.

    source: the part of this system that it happened in, `ce_source`.
    """
    attributes = h.cloud_event(
        event_type="vla.audit.v1", event_id=told.event_id, source=source, now_s=told.at_ms / 1000
    )
    key = told.customer_id.encode() or None
    sent = publisher.send(AUDIT, told.SerializeToString(), key=key, headers=h.encode(attributes))
    try:
        return await asyncio.wait_for(sent, _ACK_TIMEOUT_S)
    except TimeoutError as error:
        raise Unavailable("Kafka has not confirmed the audit record: try again", retry_after_s=1.0) from error


def control_source(origin: str) -> str:
    """`ce_source` of a stop or resume: where it was asked for stands in the record's header."""
    return _SOURCE + origin if origin.isascii() else _SOURCE.rstrip("@")


def event_of_control(control: Control, record: Record) -> AuditEvent:
    """A stop or resume as an event. Of a robot or fleet it is its customer's matter, else everybody's."""
    kind, _, name = control.target.partition(":")
    customer = name.partition("/")[0] if kind in ("robot", "fleet") else ""
    source = record.headers.get(h.CE_SOURCE, "")
    return AuditEvent(
        at_ms=control.at_ms,
        customer_id=customer,
        actor=control.who,
        action="stop" if control.stopped else "resume",
        target=control.target,
        origin=source.removeprefix(_SOURCE) if source.startswith(_SOURCE) else "",
        details={"reason": control.why},
    )


def event_of_consent(consent: Consent) -> AuditEvent:
    erased = consent.erased_before_ms > 0 and consent.erased_before_ms == consent.at_ms
    details = {"tier": consent.tier, "version": str(consent.version)}
    if consent.anonymization:
        details["anonymization_level"] = consent.anonymization
    return AuditEvent(
        at_ms=consent.at_ms,
        customer_id=consent.customer_id,
        actor=consent.who,
        action="consent.erase" if erased else "consent.set",
        target=f"customer:{consent.customer_id}",
        origin=consent.origin,
        details=details,
    )
