"""What each customer allows: the newest word of vla.consent.v1, as gates, sinks and the embedder go by it."""

from __future__ import annotations

import threading
import time
from typing import Literal

from runtime.errors import Reject
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.codes import Code
from schemas.messages import Consent
from schemas.topics import CONSENT

Tier = Literal["none", "metadata", "full"]
#: From least to most that may be kept.
TIERS: tuple[Tier, ...] = ("none", "metadata", "full")
Level = Literal["none", "partial", "full"]
#: From least to most that is taken out before anything is kept.
LEVELS: tuple[Level, ...] = ("none", "partial", "full")
_MAX_WHO = 200
_MAX_CUSTOMER = 128


def next_consent(
    before: Consent | None,
    customer_id: str,
    *,
    tier: Tier | None = None,
    expires_at_ms: int = 0,
    anonymization: Level | Literal[""] = "",
    erase: bool = False,
    who: str,
    origin: str,
    now_ms: int,
) -> Consent:
    """What follows on what a customer allowed before: another tier, or with `erase` an end of what was kept.

    tier: None leaves tier, expiry and anonymization as they were; who never said anything gets "none" by that.
    Raises Reject for a customer or a name that cannot be.
    """
    for field, text, limit in (("customer", customer_id, _MAX_CUSTOMER), ("by", who, _MAX_WHO)):
        if not text.strip() or len(text) > limit or not text.isprintable():
            detail = f"{field}: write 1 to {limit} printable characters"
            raise Reject(Code.MALFORMED, detail, field=field)
    old = before if before is not None else Consent(tier="none")
    return Consent(
        customer_id=customer_id,
        tier=tier if tier is not None else old.tier,
        version=old.version + 1,
        consented_at_ms=now_ms if tier is not None else old.consented_at_ms,
        expires_at_ms=expires_at_ms if tier is not None else old.expires_at_ms,
        anonymization=anonymization if tier is not None else old.anonymization,
        who=who.strip(),
        origin=origin,
        at_ms=now_ms,
        erased_before_ms=now_ms if erase else old.erased_before_ms,
    )


async def publish_consent(publisher: PublisherPort, consent: Consent) -> Delivered:
    """Write the record and wait until the broker has it. Raises Retry, Unavailable or Fatal."""
    attributes = h.cloud_event(
        event_type="vla.consent.v1",
        event_id=f"{consent.customer_id}/{consent.version}",
        source="operator",
        now_s=time.time(),
    )
    key = consent.customer_id.encode()
    return await publisher.send(CONSENT, consent.SerializeToString(), key=key, headers=h.encode(attributes))


class ConsentList:
    """Thread-safe: a view writes, others read. A customer who never said anything has `default_tier`.

    An erasure holds whatever is said after it: whoever wrote the next record may not have known of it yet.
    """

    def __init__(self, default_tier: Tier, default_level: Level) -> None:
        self._default_tier = default_tier
        self._default_level = default_level
        self._lock = threading.Lock()
        self._consents: dict[str, Consent] = {}

    def update(self, key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        customer_id = key.decode("utf-8", "replace")
        consent = Consent.FromString(value) if value is not None else None
        with self._lock:
            if consent is None:
                self._consents.pop(customer_id, None)
            else:
                self._put(customer_id, consent)

    def published(self, consent: Consent) -> None:
        """Know at once what this process has just written, unless what came from the log is newer."""
        with self._lock:
            known = self._consents.get(consent.customer_id)
            if known is None or known.version < consent.version:
                self._put(consent.customer_id, consent)

    def _put(self, customer_id: str, consent: Consent) -> None:
        known = self._consents.get(customer_id)
        if known is not None:
            consent.erased_before_ms = max(consent.erased_before_ms, known.erased_before_ms)
        self._consents[customer_id] = consent

    def of(self, customer_id: str) -> Consent | None:
        """The newest record of a customer, None where there is none."""
        with self._lock:
            return self._consents.get(customer_id)

    def tier(self, customer_id: str, now_ms: int) -> Tier:
        """What holds at `now_ms`. An expired consent, or a word that this version does not know, is "none"."""
        consent = self.of(customer_id)
        if consent is None:
            return self._default_tier
        if consent.tier not in TIERS or 0 < consent.expires_at_ms <= now_ms:
            return "none"
        return consent.tier

    def level(self, customer_id: str) -> Level:
        """How much is anonymized: the stricter of the installation's level and the customer's."""
        consent = self.of(customer_id)
        asked = consent.anonymization if consent is not None else ""
        # A word that this version does not know is taken for the strictest.
        own = LEVELS.index(asked) if asked in LEVELS else (len(LEVELS) - 1 if asked else 0)
        return LEVELS[max(own, LEVELS.index(self._default_level))]

    def is_erased(self, customer_id: str, requested_at_ms: int) -> bool:
        """Whether a request that was appended then belongs to what the customer had erased."""
        consent = self.of(customer_id)
        return consent is not None and requested_at_ms <= consent.erased_before_ms
