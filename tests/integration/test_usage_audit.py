"""What customers used and what was done, as the log says it, in a real Postgres."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import Actor, KeyAdmin, KeyTerms
from ingest_api.reading import PostgresReader
from ingest_api.upkeep import Upkeep, used_this_month
from runtime.consent import next_consent, publish_consent
from runtime.control import control_record, publish_control
from runtime.database import Database
from runtime.errors import Poison, Unavailable
from runtime.limit_counter import LimitCounter
from runtime.metrics import Metrics
from runtime.outbox import drain
from runtime.settings import Settings
from runtime.windows import month_of
from schemas.messages import AuditEvent, Customer, Outcome, StageTimes
from schemas.scopes import Scope
from schemas.topics import AUDIT, CONSENT, CONTROL, CUSTOMERS, OUTCOMES
from sinks.marks import Buffer, Limits, Partition
from sinks.postgres import AnyRow, PostgresStore
from tests import factories as f
from tests.in_memory import InMemoryBroker
from tests.postgres_case import rows
from tests.sink_case import consents, postgres_decoder
from tests.tenancy_case import EMAIL, OPERATOR, customer, database, now_ms, settings, unique
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import key_record

__all__ = ["customer", "database", "settings"]


# --- usage


def outcome(customer: str, robot: str, offset: int, *, inferred: bool = True, code: str = "invalid_image") -> Outcome:
    """One of now, made from the completion at this offset."""
    kind: dict[str, Any] = {} if inferred else {"rejection": f.rejection(code)}
    times = f.stage_times() if inferred else StageTimes()
    request = f.request_summary(customer_id=customer, robot_id=robot, requested_at_ms=now_ms())
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
    assert used_this_month(database, now_ms() / 1000)[name] == 5


def test_what_a_customer_had_erased_was_used_all_the_same(database: Database) -> None:
    name = unique()
    said: dict[str, Any] = {name: {"tier": "full", "erased_before_ms": now_ms() + 60_000}}
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
    consent = next_consent(None, "c-1", tier="full", who="ben", origin="10.0.0.1", now_ms=now_ms())
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
