"""`vlastream consent`: what customers allow, written to and read from vla.consent.v1 itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial

from sqlalchemy import select

from runtime.consent import ConsentList, Level, Tier, next_consent, publish_consent
from runtime.control_commands import known_customer, login_name
from runtime.data_tables import erasures
from runtime.database import connect
from runtime.errors import Unavailable
from runtime.kafka import build_consumer, build_producer, wait_for_kafka
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.view import CompactedView
from schemas.messages import Consent
from schemas.topics import CONSENT

Say = Callable[[str], None]
_CLIENT_ID = "vlastream-consent"
_TIMEOUT_S = 15.0
_POLL_S = 0.5


def show_consent(settings: Settings, customer: str, *, say: Say) -> None:
    """What holds for a customer now. Raises Unavailable while Kafka is away."""
    customer = known_customer(settings, customer, say)
    consents, _ = _read(settings)
    now_ms = _now_ms()
    consent = consents.of(customer)
    say(f"{customer}: {consents.tier(customer, now_ms)}, anonymization {consents.level(customer)}")
    say(_line(consent, consent.at_ms) if consent is not None else "by default: this customer has never said anything")


def set_consent(
    settings: Settings,
    customer: str,
    *,
    tier: Tier,
    expires: datetime | None,
    anonymization: Level | None,
    by: str | None,
    say: Say,
) -> None:
    """Record what a customer allows from now on. Raises Reject, or Unavailable while Kafka is away."""
    customer = known_customer(settings, customer, say)
    consents, _ = _read(settings)
    expires_at_ms = round(expires.replace(tzinfo=UTC).timestamp() * 1000) if expires is not None else 0
    consent = next_consent(
        consents.of(customer),
        customer,
        tier=tier,
        expires_at_ms=expires_at_ms,
        anonymization=anonymization or "",
        who=by if by is not None else login_name(),
        origin="cli",
        now_ms=_now_ms(),
    )
    _publish(settings, consent)
    say(f"{_line(consent, consent.at_ms)}: it holds for requests from 5 seconds on")


def show_history(settings: Settings, customer: str, *, say: Say) -> None:
    """Every change that the log still has; the table consent_audit has all of them."""
    customer = known_customer(settings, customer, say)
    _, records = _read(settings)
    lines = [_line(consent, at_ms) for at_ms, consent in records if consent.customer_id == customer]
    for line in lines or [f"{customer} has never said anything"]:
        say(line)


def erase(settings: Settings, customer: str, *, by: str | None, wait_s: float, say: Say) -> int:
    """Erase what is kept of a customer up to now; 0 once it is done, 1 if that took longer than `wait_s`."""
    customer = known_customer(settings, customer, say)
    consents, _ = _read(settings)
    who = by if by is not None else login_name()
    consent = next_consent(consents.of(customer), customer, erase=True, who=who, origin="cli", now_ms=_now_ms())
    _publish(settings, consent)
    say(f"the log has it: everything of {customer} before {_moment(consent.erased_before_ms)} goes")
    database = connect(settings, _CLIENT_ID, pool_size=1)
    end = time.monotonic() + wait_s
    before = datetime.fromtimestamp(consent.erased_before_ms / 1000, UTC)
    try:
        while time.monotonic() < end:
            with database.begin() as connection:
                row = connection.execute(select(erasures).where(erasures.c.customer_id == customer)).one_or_none()
            if row is not None and row.state == "done" and row.erased_before >= before:
                say(f"done: {row.removed}")
                return 0
            time.sleep(_POLL_S)
    finally:
        database.close()
    say(f"not done after {wait_s:g} s: is the role `etl serve` up? It goes on; ask again with the same command")
    return 1


def _read(settings: Settings) -> tuple[ConsentList, list[tuple[int, Consent]]]:
    consents = ConsentList(settings.default_consent_tier, settings.anonymization_level)
    records: list[tuple[int, Consent]] = []

    def take(key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        consents.update(key, value, appended_at_ms)
        if value is not None:
            records.append((appended_at_ms, Consent.FromString(value)))

    wait_for_kafka(settings, timeout_s=_TIMEOUT_S)
    view = CompactedView(partial(build_consumer, settings, _CLIENT_ID, group=None), CONSENT, take)
    view.start()
    try:
        if not view.wait_ready(_TIMEOUT_S):
            raise Unavailable(f"{CONSENT} could not be read to its end: did `vlastream topics apply` run?")
    finally:
        view.close(Deadline(_TIMEOUT_S))
    return consents, records


def _publish(settings: Settings, consent: Consent) -> None:
    publisher = Publisher(build_producer(settings, _CLIENT_ID), Metrics())
    try:
        asyncio.run(publish_consent(publisher, consent))
    finally:
        publisher.close(_TIMEOUT_S)


def _line(consent: Consent, at_ms: int) -> str:
    until = f" until {_moment(consent.expires_at_ms)}" if consent.expires_at_ms else ""
    level = f", anonymization {consent.anonymization}" if consent.anonymization else ""
    erased = f", erased before {_moment(consent.erased_before_ms)}" if consent.erased_before_ms else ""
    line = f"{_moment(at_ms)}  v{consent.version}  {consent.tier}{until}{level}{erased}  by {consent.who}"
    return "".join(c if c.isprintable() else "?" for c in line)


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _now_ms() -> int:
    return round(time.time() * 1000)
