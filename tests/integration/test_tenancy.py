"""Keys, customers, limits, usage and the audit log on a real Postgres and a real Valkey."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from pydantic import SecretStr

from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import Actor, KeyAdmin, KeyTerms
from ingest_api.key_stores import PostgresKeys, ValkeyKeys
from ingest_api.keys import KeyRing, hash_key
from ingest_api.limits import CountedLimits
from ingest_api.problems import Problem
from ingest_api.reading import PostgresReader
from ingest_api.upkeep import Upkeep, used_this_month
from runtime.consent import next_consent, publish_consent
from runtime.control import control_record, publish_control
from runtime.database import Database, connect
from runtime.errors import Poison, Reject, Unavailable
from runtime.limit_counter import LimitCounter
from runtime.metrics import Metrics
from runtime.outbox import drain
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.valkey import Valkey
from runtime.windows import month_of
from schemas.messages import AuditEvent, Customer, Outcome, StageTimes
from schemas.scopes import Scope
from schemas.tiers import UNLIMITED
from schemas.topics import AUDIT, CONSENT, CONTROL, CUSTOMERS, OUTCOMES
from sinks.marks import Buffer, Limits, Partition
from sinks.migrate import upgrade
from sinks.postgres import AnyRow, PostgresStore
from tests import factories as f
from tests.embedded import running
from tests.in_memory import InMemoryBroker
from tests.postgres_case import rows
from tests.sink_case import consents, postgres_decoder
from tests.unit.api_case import Api, body
from tests.unit.api_stand_ins import key_record

EMAIL = "robot@example.org"
OPERATOR = Actor("ana", "cli")
_LIMIT = 60
NOW_MS = round(time.time() * 1000)


@pytest.fixture
def settings(fresh_database: str, valkey_url: str) -> Settings:
    settings = Settings(_env_file=None, database_url=SecretStr(fresh_database), redis_url=SecretStr(valkey_url))
    upgrade(settings)
    return settings


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    opened = connect(settings, "test", pool_size=4)
    yield opened
    opened.close()


@pytest.fixture
def customer(database: Database) -> str:
    return str(CustomerAdmin(database).ensure(OPERATOR, EMAIL, "pro").id)


def unique() -> str:
    """The servers are shared: a customer of this test's own."""
    return f"test-{uuid.uuid4().hex[:12]}"


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


# --- usage


def outcome(customer: str, robot: str, offset: int, *, inferred: bool = True, code: str = "invalid_image") -> Outcome:
    """One of now, made from the completion at this offset."""
    kind: dict[str, Any] = {} if inferred else {"rejection": f.rejection(code)}
    times = f.stage_times() if inferred else StageTimes()
    request = f.request_summary(customer_id=customer, robot_id=robot, requested_at_ms=NOW_MS)
    return f.outcome(row_id=str(uuid.uuid4()), request=request, results_offset=offset, times=times, **kind)


def write(store: PostgresStore, outcomes: list[Outcome]) -> None:
    """One batch on top of the mark that the store has."""
    partition = Partition(OUTCOMES, 0)
    before = store.open(partition)
    buffer = Buffer[AnyRow](before, before.next_offset, Limits(rows=1000, size_bytes=10**9, age_s=1))
    for offset, made in enumerate(outcomes, start=before.next_offset):
        buffer.add(postgres_decoder()(f.record(made.SerializeToString(), offset=offset)), 0)
    batch = buffer.batch()
    assert batch is not None
    store.write(partition, batch)


def test_usage_is_what_the_log_says_however_often_it_is_read(database: Database) -> None:
    store, name = PostgresStore(database, consents()), unique()
    first = [
        outcome(name, "arm-1", 0),
        outcome(name, "arm-1", 1),
        outcome(name, "arm-2", 2, inferred=False),
        outcome(name, "arm-1", 3, inferred=False, code="quota_exceeded"),
    ]
    write(store, first)
    write(store, [outcome(name, "arm-3", 4), outcome("another", "arm-1", 5)])
    # Read again after a crash: the mark knows them.
    write(store, [*first, outcome(name, "arm-3", 6)])
    (used,) = rows(database, "SELECT * FROM usage_daily WHERE customer_id = :name", name=name)
    assert (used["requests"], used["inferences"], used["successful"], used["rate_limited"]) == (6, 4, 4, 1)
    assert (used["robots"], used["gpu_ms"]) == (2, pytest.approx(40.0))
    logged = rows(database, "SELECT count(*) AS n FROM inference_log WHERE customer_id = :name", name=name)
    assert logged == [{"n": 6}]
    assert used_this_month(database, NOW_MS / 1000)[name] == 5


def test_what_a_customer_had_erased_was_used_all_the_same(database: Database) -> None:
    name = unique()
    said: dict[str, Any] = {name: {"tier": "full", "erased_before_ms": NOW_MS + 1}}
    erased = consents("none", **said)
    write(PostgresStore(database, erased), [outcome(name, "arm-1", 0)])
    assert rows(database, "SELECT id FROM inference_log WHERE customer_id = :name", name=name) == []
    assert [row["requests"] for row in rows(database, "SELECT * FROM usage_daily WHERE customer_id = :n", n=name)] == [
        1
    ]


async def test_a_counter_that_valkey_lost_stands_again_where_the_log_says(
    settings: Settings, database: Database
) -> None:
    name, now_s = unique(), time.time()
    write(PostgresStore(database, consents()), [outcome(name, "arm-1", n) for n in range(3)])
    counter = LimitCounter(settings.redis_url.get_secret_value(), Metrics())
    upkeep = Upkeep(database, InMemoryBroker({AUDIT: 1, CUSTOMERS: 1}).publisher(), counter)
    raise_quotas = upkeep._raise_quotas  # noqa: SLF001 - what its task does every half minute
    await raise_quotas()
    assert await counter.add(f"customer:{name}", month_of(now_s)) == 4
    await raise_quotas()
    assert await counter.add(f"customer:{name}", month_of(now_s)) == 5, "it never goes down"
    await upkeep.close()


async def test_usage_and_audit_are_ones_own_and_everybodys_for_an_admin(database: Database) -> None:
    name = unique()
    write(PostgresStore(database, consents()), [outcome(name, "arm-1", 0), outcome("another", "arm-1", 1)])
    customers = CustomerAdmin(database)
    customers.ensure_fleet(OPERATOR, name)
    customers.ensure_fleet(OPERATOR, "another")
    broker = InMemoryBroker({AUDIT: 1, CUSTOMERS: 1})
    assert drain(database, broker.publisher()) == 4
    sink(database, broker, AUDIT)
    admin_key = "vla_adminkey_" + "a" * 43
    api = Api(database=database, reader=PostgresReader(database))  # type: ignore[arg-type] # a real one in the scripted one's place
    api.table.add(key_record(customer_id=name))
    api.table.add(key_record(admin_key, key_id="k-9", customer_id="op", scopes=tuple(Scope)))

    async def get(path: str, key: str | None = None) -> Any:
        async with api.client(key) if key else api.client() as client:
            answer = await client.get(path)
            assert answer.status_code in (200, 403, 404), answer.text
            return answer.json()

    for by in ("day", "month"):
        (own,) = (await get(f"/v1/usage?by={by}"))["rows"]
        assert (own["customer_id"], own["requests"], own["robots"]) == (name, 1, 1)
    assert {row["customer_id"] for row in (await get("/v1/usage", admin_key))["rows"]} == {name, "another"}
    assert (await get("/v1/usage?customer_id=another"))["status"] == 403
    assert [event["customer_id"] for event in (await get("/v1/audit"))["events"]] == [name]
    assert len((await get("/v1/audit?action=customer.create", admin_key))["events"]) == 2
    stats = await get("/v1/customers/me/stats")
    assert (stats["month"]["requests"], stats["quota"]) == (1, {"monthly_quota": 100_000, "left": 99_999})
    assert (await get("/v1/customers/another/stats"))["status"] == 404
    assert (await get("/v1/customers/another", admin_key))["tier"] == "free"
    assert (await get("/v1/customers/me/safety-incidents"))["incidents"] == []


# --- what was done


def sink(database: Database, broker: InMemoryBroker, topic: str) -> None:
    """Everything that lies in a topic, through the sink's own decoder and store."""
    store, partition = PostgresStore(database, consents()), Partition(topic, 0)
    mark = store.open(partition)
    buffer = Buffer[AnyRow](mark, mark.next_offset, Limits(rows=1000, size_bytes=10**9, age_s=1))
    for record in broker.records(topic):
        if record.offset >= mark.next_offset:
            buffer.add(postgres_decoder()(record), 0)
    while (batch := buffer.batch()) is not None:
        store.write(partition, batch)
        buffer.written(batch, 0)


def test_every_change_is_one_record_of_who_what_when_and_from_where(database: Database) -> None:
    actor = Actor("key k of c", "203.0.113.9")
    customers, keys = CustomerAdmin(database), KeyAdmin(database)
    customer = str(customers.ensure(actor, EMAIL, None).id)
    secret, row = keys.create(actor, customer, KeyTerms(name="line 3"))
    keys.change(actor, customer, str(row.id), {"rate_limit": 9})
    customers.set_tier(actor, customer, "pro")
    customers.set_limits(actor, customer, {"max_robots": 3})
    keys.rotate(actor, customer, str(row.id), 0)
    customers.set_active(actor, customer, False)
    broker = InMemoryBroker({AUDIT: 1, CUSTOMERS: 1})
    sent = drain(database, broker.publisher())
    assert drain(database, broker.publisher()) == 0
    # Sent a second time, as by a process that died before it could forget them: still one row each.
    for record in broker.records(AUDIT):
        broker.publisher().publish(AUDIT, record.value, key=record.key)
    sink(database, broker, AUDIT)
    told = rows(database, "SELECT * FROM audit_log ORDER BY log_offset")
    assert [event["action"] for event in told] == [
        "customer.create", "key.create", "key.change", "customer.tier", "customer.limits", "key.rotate",
        "customer.suspend",
    ]  # fmt: skip
    assert sent == len(told) + len(broker.records(CUSTOMERS))
    assert {(event["actor"], event["origin"], event["customer_id"]) for event in told} == {
        ("key k of c", "203.0.113.9", customer)
    }
    assert all(abs(event["at"] - datetime.now(UTC)) < timedelta(minutes=5) for event in told)
    assert secret not in repr(told)
    newest = Customer.FromString(broker.records(CUSTOMERS)[-1].value or b"")
    assert (newest.tier, newest.active, newest.max_robots) == ("pro", False, 3)
    assert not newest.HasField("requests_per_minute")


def test_a_change_waits_for_kafka_and_is_not_lost(database: Database, customer: str) -> None:
    class Away:
        def publish(self, *args: Any, on_delivery: Any = None, **more: Any) -> None:
            on_delivery(None, Unavailable("away"))

    with pytest.raises(Unavailable):
        drain(database, Away())  # type: ignore[arg-type] # it has the one method that is called
    broker = InMemoryBroker({AUDIT: 1, CUSTOMERS: 1})
    assert drain(database, broker.publisher()) == 2
    assert AuditEvent.FromString(broker.records(AUDIT)[0].value or b"").action == "customer.create"


async def test_stops_and_consent_are_in_the_trail_without_being_written_twice(database: Database) -> None:
    broker = InMemoryBroker({AUDIT: 1, CONTROL: 1, CONSENT: 1})
    stop = control_record("robot:c-1/arm-1", stopped=True, who="ana", why="a person is in the cell")
    await publish_control(broker.publisher(), stop, origin="203.0.113.9")
    consent = next_consent(None, "c-1", tier="full", who="ben", origin="10.0.0.1", now_ms=NOW_MS)
    await publish_consent(broker.publisher(), consent)
    for topic in (CONTROL, CONSENT):
        sink(database, broker, topic)
    told = rows(database, "SELECT * FROM audit_trail WHERE customer_id = 'c-1' ORDER BY action")
    assert [(event["action"], event["actor"], event["origin"]) for event in told] == [
        ("consent.set", "ben", "10.0.0.1"),
        ("stop", "ana", "203.0.113.9"),
    ]
    assert told[1]["details"] == {"reason": "a person is in the cell"}
    assert broker.records(AUDIT) == []


def test_a_record_that_is_no_event_becomes_a_dead_letter(database: Database) -> None:
    for value in (b"\xff", AuditEvent(event_id="none").SerializeToString()):
        with pytest.raises(Poison):
            postgres_decoder()(f.record(value, topic=AUDIT))
