"""Keys and limits of customers on a real Postgres and a real Valkey."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import redis

from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import Actor, KeyAdmin, KeyTerms
from ingest_api.key_stores import PostgresKeys, ValkeyKeys
from ingest_api.keys import KeyRing, hash_key
from ingest_api.limits import CountedLimits
from ingest_api.problems import Problem
from runtime.database import Database
from runtime.errors import Reject
from runtime.limit_counter import LimitCounter
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.valkey import Valkey
from schemas.scopes import Scope
from schemas.tiers import UNLIMITED
from tests.embedded import running
from tests.tenancy_case import OPERATOR, customer, database, settings, unique
from tests.unit.api_case import Api, body
from tests.unit.api_stand_ins import key_record

__all__ = ["customer", "database", "settings"]
_LIMIT = 60


# --- keys


def test_a_rotated_key_gives_way_to_one_with_the_same_rights(database: Database, customer: str) -> None:
    admin, table = KeyAdmin(database), PostgresKeys(database)
    terms = KeyTerms(name="line 3", scopes=(Scope.INFERENCE,), rate_limit=60)
    old, row = admin.create(OPERATOR, customer, terms)
    new, _ = admin.rotate(OPERATOR, customer, str(row.id), 3600)
    before, after = table.find(hash_key(old)), table.find(hash_key(new))
    assert before is not None
    assert after is not None
    assert before.is_active
    assert before.expires_at_s == pytest.approx(time.time() + 3600, abs=60)
    assert (after.scopes, after.rate_limit, after.expires_at_s) == ((Scope.INFERENCE,), 60, None)
    admin.rotate(OPERATOR, customer, new[:12], 0)
    gone = table.find(hash_key(new))
    assert gone is not None
    assert not gone.is_active


def test_nobody_makes_or_touches_a_key_that_may_more_than_their_own(database: Database, customer: str) -> None:
    admin = KeyAdmin(database)
    clerk = Actor("key k of c", "10.0.0.1", frozenset({Scope.KEYS, Scope.READ}))
    for scopes in ((Scope.ADMIN,), (Scope.READ, Scope.CONTROL)):
        with pytest.raises(Reject, match="lacks the scope"):
            admin.create(clerk, customer, KeyTerms(scopes=scopes))
    _, strong = admin.create(OPERATOR, customer, KeyTerms(scopes=(Scope.ADMIN, Scope.READ)))
    for attempt in (
        lambda: admin.change(clerk, customer, str(strong.id), {"name": "mine"}),
        lambda: admin.rotate(clerk, customer, str(strong.id), 0),
    ):
        with pytest.raises(Reject, match="lacks the scope"):
            attempt()
    _, weak = admin.create(clerk, customer, KeyTerms(scopes=(Scope.READ,)))
    with pytest.raises(Reject, match="lacks the scope"):
        admin.change(clerk, customer, str(weak.id), {"scopes": [Scope.ADMIN]})


def test_a_key_of_another_customer_is_not_there(database: Database, customer: str) -> None:
    admin = KeyAdmin(database)
    _, row = admin.create(OPERATOR, customer, KeyTerms())
    other = str(CustomerAdmin(database).ensure(OPERATOR, "other@example.org", None).id)
    with pytest.raises(Reject, match="no active key"):
        admin.change(OPERATOR, other, str(row.id), {"name": "x"})
    assert admin.revoke(OPERATOR, other, str(row.id)) == []
    assert admin.all(other) == []
    assert [found.id for found in admin.all(customer)] == [row.id]


@pytest.mark.parametrize("which", ["", "x", "\x00", "'; DROP TABLE api_keys; --", "%", str(uuid.uuid4())])
def test_no_name_of_a_key_is_more_than_a_name(database: Database, customer: str, which: str) -> None:
    admin = KeyAdmin(database)
    admin.create(OPERATOR, customer, KeyTerms())
    assert admin.revoke(OPERATOR, None, which) == []


async def test_a_forged_entry_of_the_cache_is_not_believed(settings: Settings, database: Database) -> None:
    key = "vla_abcdefgh_" + "f" * 43
    url = settings.redis_url.get_secret_value()
    forger, cache = ValkeyKeys.at(url, "another secret"), ValkeyKeys.at(url, "the secret")
    forger.put(hash_key(key), key_record(key, scopes=tuple(Scope)), time.time(), keep_s=60)
    assert forger.get(hash_key(key)) is not None
    ring = KeyRing(cache=cache, table=PostgresKeys(database), ttl_s=5, stale_s=600, metrics=Metrics())
    try:
        with pytest.raises(Exception, match="nobody has this key"):
            await ring.authenticate(f"Bearer {key}", Scope.ADMIN)
        cache.put("another key's place", key_record(key), time.time(), keep_s=60)
        # As whoever can write there.
        with redis.Redis.from_url(url) as client:
            moved: Any = client.get("vlastream:key:another key's place")
            assert client.set(f"vlastream:key:{hash_key(key)}", moved)
        assert cache.get(hash_key(key)) is None
    finally:
        ring.close()
        forger.close()
        cache.close()


# --- limits


async def test_limits_hold_exactly_over_three_processes_under_concurrent_load(settings: Settings) -> None:
    name, now_s = unique(), time.time()
    limits = replace(UNLIMITED, requests_per_minute=_LIMIT)
    counters = [LimitCounter(settings.redis_url.get_secret_value(), Metrics()) for _ in range(3)]
    apis = [Api(limits=CountedLimits(counter, Metrics(), now=lambda: now_s)) for counter in counters]
    for api in apis:
        api.table.add(key_record(customer_id=name, key_id=name, limits=limits))
    answers = await asyncio.gather(*(apis[n % 3].post(body(step=n)) for n in range(3 * _LIMIT)))
    let_in = sum(answer.status_code == 200 for answer in answers)
    assert let_in == _LIMIT
    assert {answer.status_code for answer in answers} == {200, 429}
    assert sum(len(api.gateway.asked) for api in apis) == _LIMIT
    for counter in counters:
        await counter.close()


async def test_limits_hold_for_a_limit_that_is_leased_in_blocks(settings: Settings) -> None:
    limit, name, now_s = 3000, unique(), time.time()
    counters = [LimitCounter(settings.redis_url.get_secret_value(), Metrics()) for _ in range(3)]
    key = key_record(customer_id=name, limits=replace(UNLIMITED, requests_per_minute=limit))
    limits = [CountedLimits(counter, Metrics(), now=lambda: now_s) for counter in counters]

    async def ask(number: int) -> int:
        taken = 0
        for _ in range(limit // 8):
            with suppress(Problem):
                await limits[number % 3].take(key)
                taken += 1
        return taken

    taken = sum(await asyncio.gather(*(ask(number) for number in range(12))))
    assert limit * 0.99 <= taken <= limit
    for counter in counters:
        await counter.close()


async def test_no_two_processes_let_in_the_last_robot(settings: Settings) -> None:
    name, now_s = unique(), time.time()
    key = key_record(customer_id=name, limits=replace(UNLIMITED, max_robots=5))
    counters = [LimitCounter(settings.redis_url.get_secret_value(), Metrics()) for _ in range(3)]
    limits = [CountedLimits(counter, Metrics(), now=lambda: now_s) for counter in counters]
    asked = [limits[n % 3].admit_robot(key, f"arm-{n // 3}") for n in range(30)]
    found = await asyncio.gather(*asked, return_exceptions=True)
    admitted = {n // 3 for n, answer in enumerate(found) if answer is None}
    assert len(admitted) == 5
    for counter in counters:
        await counter.close()


async def test_valkey_away_costs_limits_and_no_request(own_layout: Layout) -> None:
    valkey = Valkey(own_layout)
    with running(valkey, own_layout) as server:
        metrics = Metrics()
        counter = LimitCounter(valkey.url, metrics)
        api = Api(limits=CountedLimits(counter, metrics))
        api.table.add(key_record(limits=replace(UNLIMITED, requests_per_day=1)))
        assert [(await api.post(body(step=n))).status_code for n in range(2)] == [200, 429]
        server.kill()
        fresh = Api(limits=CountedLimits(counter, metrics))
        fresh.table.add(key_record(limits=replace(UNLIMITED, requests_per_day=1)))
        assert [(await fresh.post(body(step=n))).status_code for n in range(3)] == [200, 200, 200]
        assert metrics.registry.get_sample_value("vla_limits_unchecked_total") == 3
        await counter.close()
