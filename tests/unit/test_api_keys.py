"""The key ring: what is fresh, what is stale, what is unknown, with and without its stores."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from ingest_api.customer_admin import customer_id_of
from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing, hash_key
from ingest_api.problems import Problem
from runtime.errors import Fatal
from runtime.metrics import Metrics
from tests.unit.api_stand_ins import KEY, DictKeys, ManualClock, key_record

TTL_S, STALE_S = 5.0, 600.0
HEADER = f"Bearer {KEY}"


class Case:
    def __init__(self) -> None:
        self.table = DictKeys(key_record())
        self.cache = DictKeys()
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.rings: list[KeyRing] = []
        self.ring = self.new_ring()

    def new_ring(self) -> KeyRing:
        """A process of its own, with the same stores."""
        ring = KeyRing(
            cache=self.cache,
            table=self.table,
            ttl_s=TTL_S,
            stale_s=STALE_S,
            metrics=self.metrics,
            clock=self.clock,
            now=self.clock,
        )
        self.rings.append(ring)
        return ring

    def all_away(self, away: bool = True) -> None:
        self.table.away = self.cache.away = away

    def change(self, **changes: Any) -> None:
        """The record in Postgres, as `keys revoke` and its kin leave it: the cache is told to forget."""
        record = key_record(**changes)
        self.table.records = {record.key_hash: record}
        self.cache.records.clear()

    def lookups(self, source: str) -> float:
        return self.metrics.registry.get_sample_value("vla_key_lookups_total", {"source": source}) or 0


@pytest.fixture
def case() -> Iterator[Case]:
    case = Case()
    yield case
    for ring in case.rings:
        ring.close()


async def refused(ring: KeyRing, status: int, header: str | None = HEADER) -> Problem:
    with pytest.raises(Problem) as caught:
        await ring.authenticate(header)
    assert caught.value.status == status
    return caught.value


async def test_a_fresh_key_is_not_looked_up_again(case: Case) -> None:
    for _ in range(5):
        assert (await case.ring.authenticate(HEADER)).customer_id == "customer-1"
    assert case.table.asked == 1
    assert (case.lookups("postgres"), case.lookups("memory")) == (1, 4)


async def test_another_process_finds_the_key_in_the_cache(case: Case) -> None:
    await case.ring.authenticate(HEADER)
    case.clock.now_s += 1
    await case.new_ring().authenticate(HEADER)
    assert case.table.asked == 1
    assert case.lookups("valkey") == 1


async def test_the_raw_key_is_nowhere_in_the_cache(case: Case) -> None:
    await case.ring.authenticate(HEADER)
    assert list(case.cache.records) == [hash_key(KEY)]
    assert KEY not in repr(case.cache.records)


async def test_a_revoked_key_is_refused_after_the_ttl_everywhere(case: Case) -> None:
    other = case.new_ring()
    await case.ring.authenticate(HEADER)
    await other.authenticate(HEADER)
    case.change(is_active=False)
    case.clock.now_s += TTL_S
    await refused(case.ring, 401)
    await refused(other, 401)


async def test_a_revocation_holds_though_the_cache_was_not_told(case: Case) -> None:
    await case.ring.authenticate(HEADER)
    case.table.records = {hash_key(KEY): key_record(is_active=False)}
    case.clock.now_s += TTL_S
    await refused(case.ring, 401)


async def test_a_key_that_is_revoked_while_it_is_looked_up_is_refused_after_the_ttl_everywhere(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    find, lookup_s = case.table.find, TTL_S - 1

    def find_slowly(reference: str) -> KeyRecord | None:
        found = find(reference)
        monkeypatch.setattr(case.table, "find", find)
        case.change(is_active=False)
        case.clock.now_s += lookup_s
        return found

    monkeypatch.setattr(case.table, "find", find_slowly)
    other = case.new_ring()
    await case.ring.authenticate(HEADER)
    await other.authenticate(HEADER)
    assert case.lookups("valkey") == 1, "the copy outlived the revocation"
    case.clock.now_s += TTL_S - lookup_s
    await refused(case.ring, 401)
    await refused(other, 401)


async def test_a_known_key_is_honoured_while_all_stores_are_away(case: Case) -> None:
    await case.ring.authenticate(HEADER)
    case.all_away()
    case.clock.now_s += STALE_S - 1
    assert await case.ring.authenticate(HEADER)
    assert case.lookups("stale") == 1


async def test_stores_that_are_away_are_not_asked_at_every_request(case: Case) -> None:
    await case.ring.authenticate(HEADER)
    case.all_away()
    case.clock.now_s += TTL_S
    await case.ring.authenticate(HEADER)
    asked = case.table.asked
    for _ in range(10):
        await case.ring.authenticate(HEADER)
    assert case.table.asked == asked


async def test_staleness_has_an_end(case: Case) -> None:
    await case.ring.authenticate(HEADER)
    case.all_away()
    while case.clock.now_s < 1000 + STALE_S - 2:
        case.clock.now_s += 2
        await case.ring.authenticate(HEADER)
    case.clock.now_s += 4
    problem = await refused(case.ring, 503)
    assert problem.retry_after_s > 0


async def test_a_key_that_is_not_known_is_503_and_not_401_while_stores_are_away(case: Case) -> None:
    case.all_away()
    problem = await refused(case.ring, 503)
    assert problem.code == "unavailable"
    case.all_away(False)
    case.clock.now_s += 2
    assert await case.ring.authenticate(HEADER)


async def test_a_new_process_honours_what_the_cache_knows_while_postgres_is_away(case: Case) -> None:
    await case.ring.authenticate(HEADER)
    case.table.away = True
    case.clock.now_s += STALE_S - 1
    assert await case.new_ring().authenticate(HEADER)
    case.clock.now_s += 2
    await refused(case.new_ring(), 503)


async def test_without_the_cache_postgres_answers(case: Case) -> None:
    case.cache.away = True
    assert await case.ring.authenticate(HEADER)
    assert case.lookups("postgres") == 1


async def test_an_unknown_key_is_looked_up_once_in_a_while(case: Case) -> None:
    unknown = "Bearer vla_00000000_" + "u" * 43
    for _ in range(5):
        problem = await refused(case.ring, 401, unknown)
    assert 'error="invalid_token"' in problem.headers["www-authenticate"]
    assert case.table.asked == 1
    case.clock.now_s += 2
    await refused(case.ring, 401, unknown)
    assert case.table.asked == 2


async def test_a_key_made_after_it_was_refused_works_within_seconds(case: Case) -> None:
    record = case.table.records.pop(hash_key(KEY))
    await refused(case.ring, 401)
    case.table.records[record.key_hash] = record
    case.clock.now_s += 2
    assert await case.ring.authenticate(HEADER)


@pytest.mark.parametrize(
    "header", [None, "", "Basic abc", "Bearer", "Bearer ", "Bearer x", "Bearer vla_short_x", f"Bearer {KEY} more"]
)
async def test_what_is_no_key_is_not_looked_up(case: Case, header: str | None) -> None:
    problem = await refused(case.ring, 401, header)
    assert problem.headers["www-authenticate"].startswith('Bearer realm="vlastream"')
    assert case.table.asked == case.cache.asked == 0


async def test_an_expired_key_is_refused_though_it_is_fresh_in_memory(case: Case) -> None:
    case.change(expires_at_s=case.clock.now_s + 1)
    await case.ring.authenticate(HEADER)
    case.clock.now_s += 1
    await refused(case.ring, 401)


@pytest.mark.parametrize("changes", [{"scopes": ("read",)}, {"customer_active": False}])
async def test_a_key_that_may_not_do_this_is_403(case: Case, changes: dict[str, Any]) -> None:
    case.change(**changes)
    problem = await refused(case.ring, 403)
    assert "insufficient_scope" in problem.headers["www-authenticate"]


async def test_what_unknown_keys_leave_in_memory_is_bounded(case: Case) -> None:
    for number in range(1_100):
        await refused(case.ring, 401, f"Bearer vla_00000000_{number:043d}")
    asked = case.table.asked
    await refused(case.ring, 401, f"Bearer vla_00000000_{1_099:043d}")
    assert case.table.asked == asked
    await refused(case.ring, 401, f"Bearer vla_00000000_{0:043d}")
    assert case.table.asked == asked + 1


async def test_lookups_at_once_are_bounded_and_known_keys_are_still_honoured(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest_api.keys._MOST_LOOKUPS", 2)
    await case.ring.authenticate(HEADER)
    case.clock.now_s += TTL_S + 1
    held, answer = threading.Event(), case.table.find

    def slow(reference: str) -> KeyRecord | None:
        held.wait(10)
        return answer(reference)

    monkeypatch.setattr(case.table, "find", slow)
    strangers = [asyncio.create_task(refused(case.ring, 401, f"Bearer vla_strange{n}_{'x' * 43}")) for n in range(2)]
    await asyncio.sleep(0)
    problem = await refused(case.ring, 503, f"Bearer vla_strange3_{'x' * 43}")
    assert problem.retry_after_s > 0
    assert (await case.ring.authenticate(HEADER)).key_id == "k-1"
    held.set()
    await asyncio.gather(*strangers)


def test_one_address_is_one_customer() -> None:
    assert customer_id_of("A.Robot@Example.org ") == customer_id_of("a.robot@example.org")
    assert customer_id_of("b@example.org") != customer_id_of("a@example.org")


@pytest.mark.parametrize("email", ["", "nobody", "@", "a b@example.org", "a@b@c", "x" * 65 + "@example.org"])
def test_what_is_no_address_is_refused(email: str) -> None:
    with pytest.raises(Fatal, match="e-mail"):
        customer_id_of(email)
