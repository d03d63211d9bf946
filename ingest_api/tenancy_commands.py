"""`vlastream keys` and `vlastream customers`: what operators do to keys and customers, without an API in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from ingest_api.customer_admin import CustomerAdmin, customer_id_of, described
from ingest_api.key_admin import Actor, KeyAdmin, KeyTerms, check_terms
from ingest_api.key_stores import ValkeyKeys
from runtime.control_commands import login_name
from runtime.database import Database, connect
from runtime.errors import Fatal, Reject, Unavailable, VlastreamError
from runtime.kafka import build_producer
from runtime.metrics import Metrics
from runtime.outbox import drain, kafka_listens
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.tenancy_tables import usage_daily
from schemas.scopes import DEFAULT_SCOPES
from schemas.tiers import LIMITS

log = logging.getLogger(__name__)

Say = Callable[[str], None]
_CLIENT_ID = "vlastream-tenancy"
_DAYS_SHOWN = 31


def create_key(settings: Settings, email: str, tier: str | None = None, **terms: Any) -> str:
    """A new key for the customer with this address, who is made at their first key; a tier is theirs from now on.

    terms: of KeyTerms. Returns the key, which is kept nowhere. Raises Fatal for a bad address, Unavailable while
    Postgres is away.
    """
    wanted = KeyTerms(**terms)
    check_terms(_actor(), wanted)
    with _database(settings) as database:
        customer = CustomerAdmin(database).ensure(_actor(), email, tier)
        key, _ = _keys(settings, database).create(_actor(), customer.id, wanted)
    return key


def list_keys(settings: Settings, customer: str | None = None) -> list[str]:
    """A heading and one line a key, newest first. Raises Reject without that customer, Unavailable without Postgres."""
    with _database(settings) as database:
        whose = CustomerAdmin(database).one(_customer(customer)).id if customer is not None else None
        rows = KeyAdmin(database).all(whose)
    lines = [
        f"{'PREFIX':<13} {'STATE':<8} {'TIER':<11} {'CREATED':<17} {'LAST USED':<17} {'EXPIRES':<17} EMAIL  SCOPES"
    ]
    for row in rows:
        expired = row.expires_at is not None and row.expires_at <= datetime.now(UTC)
        state = "revoked" if not row.is_active else "expired" if expired else "active"
        times = " ".join(f"{_minute(moment):<17}" for moment in (row.created_at, row.last_used_at, row.expires_at))
        scopes = "" if tuple(row.scopes) == DEFAULT_SCOPES else f"  {','.join(row.scopes)}"
        named = f"  {row.name}" if row.name else ""
        lines.append(f"{row.prefix:<13} {state:<8} {row.tier:<11} {times} {row.email}{scopes}{named}")
    return lines


def change_key(settings: Settings, which: str, changes: dict[str, Any]) -> None:
    with _database(settings) as database:
        _keys(settings, database).change(_actor(), None, which, changes)


def rotate_key(settings: Settings, which: str, grace_s: float) -> str:
    """The new key."""
    with _database(settings) as database:
        return _keys(settings, database).rotate(_actor(), None, which, grace_s)[0]


def revoke_key(settings: Settings, prefix: str) -> bool:
    """Revoke every active key with this prefix or id. False where there is none.

    API processes forget it after key_cache_ttl_s. Raises Unavailable while Postgres is away.
    """
    with _database(settings) as database:
        return bool(_keys(settings, database).revoke(_actor(), None, prefix))


def list_customers(settings: Settings) -> list[str]:
    with _database(settings) as database:
        rows = CustomerAdmin(database).all()
    lines = [f"{'ID':<36} {'TIER':<11} {'STATE':<9} {'SINCE':<17} EMAIL"]
    for row in rows:
        state = "active" if row.is_active else "suspended"
        lines.append(f"{row.id:<36} {row.tier:<11} {state:<9} {_minute(row.created_at):<17} {row.email}")
    return lines


def show_customer(settings: Settings, customer: str, *, say: Say) -> None:
    """Tier, limits and what was used."""
    with _database(settings) as database:
        row = CustomerAdmin(database).one(_customer(customer))
        days = select(usage_daily).where(usage_daily.c.customer_id == row.id).order_by(usage_daily.c.date.desc())
        with database.begin() as connection:
            used = connection.execute(days.limit(_DAYS_SHOWN)).all()
    shown = described(row)
    say(f"{row.id}  {row.email}  {row.tier}{'' if row.is_active else '  suspended'}")
    for name, value in shown["limits"].items():
        own = "  (own)" if shown["own_limits"][name] is not None else ""
        say(f"  {name:<20} {'no limit' if value is None else value}{own}")
    for day in used:
        say(f"  {day.date}  {day.requests} requests, {day.inferences} inferences, {day.robots} robots")


def set_tier(settings: Settings, customer: str, tier: str) -> None:
    with _changed(settings, customer) as (admin, customer_id):
        admin.set_tier(_actor(), customer_id, tier)


def set_limits(settings: Settings, customer: str, own: dict[str, int | None], *, reset: bool) -> None:
    """own: what is named; with `reset` everything else goes back to the tier's."""
    wanted = {**(dict.fromkeys(LIMITS) if reset else {}), **own}
    if not wanted:
        raise Fatal("name a limit, or --reset for those of the tier")
    with _changed(settings, customer) as (admin, customer_id):
        admin.set_limits(_actor(), customer_id, wanted)


def set_active(settings: Settings, customer: str, active: bool) -> None:
    with _changed(settings, customer) as (admin, customer_id):
        admin.set_active(_actor(), customer_id, active)


@contextmanager
def _changed(settings: Settings, customer: str) -> Iterator[tuple[CustomerAdmin, str]]:
    with _database(settings) as database:
        admin, customer_id = CustomerAdmin(database), _customer(customer)
        if customer_id in settings.fleets:
            admin.ensure_fleet(_actor(), customer_id)
        yield admin, customer_id


@contextmanager
def _database(settings: Settings) -> Iterator[Database]:
    """A connection; what was written is sent on to Kafka at the end, or by an API process later."""
    database = connect(settings, _CLIENT_ID, pool_size=2)
    try:
        yield database
        _send_on(settings, database)
    except Reject as refusal:
        raise Fatal(str(refusal)) from refusal
    finally:
        database.close()


def _send_on(settings: Settings, database: Database) -> None:
    if not kafka_listens(settings):
        log.warning("Kafka is away: the records of this change are sent by an API process", extra={"action": "outbox"})
        return
    publisher = Publisher(build_producer(settings, _CLIENT_ID), Metrics())
    try:
        while drain(database, publisher):
            pass
    except VlastreamError as error:
        log.warning("the records of this change are sent later: %s", error, extra={"action": "outbox"})
    finally:
        publisher.close(1.0)


def _keys(settings: Settings, database: Database) -> KeyAdmin:
    def forget(references: Sequence[str]) -> None:
        cache = ValkeyKeys.at(settings.redis_url.get_secret_value(), settings.secret_key.get_secret_value())
        try:
            for reference in references:
                cache.delete(reference)
        except Unavailable as error:
            # What stands there is asked again at Postgres once it is older than key_cache_ttl_s.
            log.warning("the cache keeps the key for some seconds: %s", error, extra={"action": "revoke"})
        finally:
            cache.close()

    return KeyAdmin(database, forget)


def _actor() -> Actor:
    return Actor(login_name(), "cli")


def _customer(named: str) -> str:
    """By id, or by e-mail address."""
    return customer_id_of(named) if "@" in named else named


def _minute(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if moment is not None else "never"
