"""Builds what knows customers, their keys and their limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import KeyAdmin
from ingest_api.key_stores import PostgresKeys, ValkeyKeys
from ingest_api.key_watch import KeyWatch
from ingest_api.keys import KeyRing
from ingest_api.limits import CountedLimits, Limits, NoLimits
from ingest_api.tokens import Tokens
from ingest_api.upkeep import Upkeep, reporter
from runtime.database import Database
from runtime.errors import Unavailable
from runtime.limit_counter import LimitCounter
from runtime.metrics import Metrics
from runtime.publisher import PublisherPort
from runtime.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenancy:
    keys: KeyRing
    key_admin: KeyAdmin
    customers: CustomerAdmin
    tokens: Tokens | None
    limits: Limits
    upkeep: Upkeep


def build_tenancy(
    settings: Settings, *, database: Database, valkey: ValkeyKeys, publisher: PublisherPort, metrics: Metrics
) -> Tenancy:
    """On the event loop that serves. Starts nothing."""
    secret = settings.jwt_secret_key.get_secret_value()
    tokens = Tokens(secret) if secret else None
    counter = LimitCounter.of(settings, metrics) if settings.enable_rate_limits else None
    keys = KeyRing(
        cache=valkey,
        table=PostgresKeys(database),
        ttl_s=settings.key_cache_ttl_s,
        stale_s=settings.key_cache_stale_s,
        tokens=tokens,
        watch=KeyWatch(reporter(publisher)),
        metrics=metrics,
    )

    def forget(references: Sequence[str]) -> None:
        try:
            for reference in references:
                valkey.delete(reference)
        except Unavailable:
            # What stands there is asked again at Postgres once it is older than key_cache_ttl_s.
            return

    return Tenancy(
        keys=keys,
        key_admin=KeyAdmin(database, forget),
        customers=CustomerAdmin(database),
        tokens=tokens,
        limits=CountedLimits(counter, metrics) if counter is not None else NoLimits(),
        upkeep=Upkeep(database, publisher, counter),
    )
