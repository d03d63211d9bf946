"""Limits: never more than was said, at most one in a hundred less, and nothing refused because Valkey is away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ingest_api.limits import CountedLimits
from ingest_api.problems import Problem
from runtime.customers import CustomerList
from runtime.leases import Leases
from runtime.metrics import Metrics
from runtime.windows import day_of, minute_of, month_of
from schemas.messages import Customer
from schemas.tiers import ENTERPRISE, FREE, TIERS, UNLIMITED, limits_of
from schemas.topics import REQUESTS, RESULTS
from tests.counters import DictCounter
from tests.gate_bench import FLEET_TOPIC, GateBench, answered, request
from tests.unit.api_case import Api, body
from tests.unit.api_stand_ins import key_record
from tests.unit.test_api_inference import assert_problem

NOW_S = 1_700_000_030.0


def counted(counter: DictCounter, now_s: float = NOW_S) -> CountedLimits:
    return CountedLimits(counter, Metrics(), now=lambda: now_s)


# --- windows


def test_windows_are_whole_minutes_days_and_months_of_the_utc_clock() -> None:
    assert (minute_of(NOW_S).start_s, minute_of(NOW_S).end_s) == (1_699_999_980, 1_700_000_040)
    assert day_of(NOW_S).start_s % 86_400 == 0
    assert day_of(NOW_S).length_s == 86_400
    assert month_of(NOW_S).name == "month:2023-11"
    assert month_of(NOW_S).length_s == 30 * 86_400
    assert month_of(1_703_980_800.0).end_s == 1_704_067_200, "December ends with the year"


@given(now_s=st.floats(min_value=0, max_value=4e9))
def test_every_moment_lies_in_its_windows(now_s: float) -> None:
    for window in (minute_of(now_s), day_of(now_s), month_of(now_s)):
        assert window.start_s <= now_s < window.end_s


# --- leases


@given(
    limit=st.integers(min_value=1, max_value=5000),
    processes=st.integers(min_value=1, max_value=8),
    order=st.randoms(use_true_random=False),
)
@hypothesis_settings(deadline=None, max_examples=25)
def test_processes_together_take_no_more_and_hardly_less(limit: int, processes: int, order: Any) -> None:
    counter = DictCounter()
    leases = [Leases(counter) for _ in range(processes)]

    async def run() -> int:
        taken = 0
        for _ in range(limit + processes * 20):
            found = await order.choice(leases).take("customer:a", minute_of(NOW_S), limit, NOW_S)
            assert found is not None
            taken += found.allowed
        return taken

    taken = asyncio.run(run())
    assert taken <= limit
    assert taken >= limit * 0.99


async def test_a_busy_customer_costs_few_questions() -> None:
    counter = DictCounter()
    leases = Leases(counter)
    for _ in range(1000):
        await leases.take("customer:a", minute_of(NOW_S), 30_000, NOW_S)
    assert counter.asked <= 30


async def test_what_is_used_up_is_not_asked_about_again_at_once() -> None:
    counter = DictCounter()
    leases = Leases(counter)
    for _ in range(20):
        await leases.take("customer:a", minute_of(NOW_S), 2, NOW_S)
    assert counter.asked == 3


# --- at the API


async def refused(counted_by: CountedLimits, **changes: Any) -> Problem:
    with pytest.raises(Problem) as caught:
        await counted_by.take(key_record(**changes))
    assert caught.value.status == 429
    return caught.value


async def test_each_limit_refuses_with_its_name_and_the_time_until_it_begins_anew() -> None:
    for name, seconds in (("requests_per_minute", 10), ("requests_per_day", 86_400), ("monthly_quota", 31 * 86_400)):
        limits, own = counted(DictCounter()), replace(UNLIMITED, **{name: 2})
        for _ in range(2):
            await limits.take(key_record(limits=own))
        problem = await refused(limits, limits=own)
        assert problem.violations[0]["reason"] == name
        assert 0 < problem.retry_after_s <= seconds
        assert problem.headers["ratelimit-remaining"] == "0"


async def test_a_key_has_its_own_limit_within_that_of_its_customer() -> None:
    limits = counted(DictCounter())
    await limits.take(key_record(key_id="a", rate_limit=1))
    assert (await refused(limits, key_id="a", rate_limit=1)).violations[0]["reason"] == "key"
    await limits.take(key_record(key_id="b", rate_limit=1))


async def test_the_tightest_limit_is_told() -> None:
    own = replace(UNLIMITED, requests_per_minute=10, requests_per_day=1000)
    allowance = await counted(DictCounter()).take(key_record(limits=own))
    assert allowance.headers == {
        "ratelimit-limit": "10",
        "ratelimit-remaining": "9",
        "ratelimit-reset": "10",
        "ratelimit-policy": "10;w=60",
    }


async def test_a_customer_without_limits_is_not_counted() -> None:
    counter = DictCounter()
    allowance = await counted(counter).take(key_record(limits=TIERS[ENTERPRISE]))
    assert (allowance.headers, counter.asked) == ({}, 0)


async def test_without_valkey_everybody_is_let_in() -> None:
    counter = DictCounter()
    counter.away = True
    limits, key = counted(counter), key_record(limits=replace(UNLIMITED, requests_per_minute=1, max_robots=1))
    for number in range(5):
        await limits.take(key)
        await limits.admit_robot(key, f"arm-{number}")


async def test_only_so_many_robots_come_in_on_a_day() -> None:
    counter, key = DictCounter(), key_record(limits=replace(UNLIMITED, max_robots=2))
    one, other = counted(counter), counted(counter)
    await one.admit_robot(key, "arm-1")
    await other.admit_robot(key, "arm-2")
    for limits in (one, other):
        await limits.admit_robot(key, "arm-1")
        with pytest.raises(Problem, match="2 robots a day"):
            await limits.admit_robot(key, "arm-3")
        await limits.admit_robot(key, "no robot \x00")
    await counted(counter, NOW_S + 86_400).admit_robot(key, "arm-3")


async def test_the_api_answers_429_with_headers_and_tells_what_is_left() -> None:
    api = Api(limits=counted(DictCounter()))
    api.table.add(key_record(limits=replace(UNLIMITED, requests_per_minute=2)))
    for left in ("1", "0"):
        answer = await api.post(body())
        assert (answer.status_code, answer.headers["ratelimit-remaining"]) == (200, left)
    answer = await api.post(body())
    assert_problem(answer, 429, "quota_exceeded")
    assert int(answer.headers["retry-after"]) == 10
    assert answer.headers["ratelimit-reset"] == "10"
    assert len(api.gateway.asked) == 2


async def test_what_never_reached_the_log_does_not_count_for_the_month_but_for_the_minute() -> None:
    counter = DictCounter()
    api = Api(limits=counted(counter))
    api.table.add(key_record(limits=replace(UNLIMITED, requests_per_minute=3, monthly_quota=1)))
    for _ in range(2):
        assert (await api.post(body(robot_id=...))).status_code == 400
    assert (await api.post(body())).status_code == 200
    assert_problem(await api.post(body()), 429, "quota_exceeded")


async def test_a_body_beyond_the_customers_payload_is_413() -> None:
    api = Api(limits=counted(DictCounter()))
    api.table.add(key_record(limits=replace(UNLIMITED, max_payload_bytes=100)))
    assert_problem(await api.post(body()), 413, "too_large")


# --- tiers


def test_own_numbers_go_before_the_tiers_and_an_unknown_tier_is_the_least() -> None:
    assert limits_of(FREE, {"max_robots": 7}) == replace(TIERS[FREE], max_robots=7)
    assert limits_of("platinum", {}) == TIERS[FREE]


def test_gates_follow_the_newest_record_of_a_customer() -> None:
    customers = CustomerList()
    assert customers.limits("north") == UNLIMITED
    record = Customer(customer_id="north", tier="free", active=False, max_robots=9)
    customers.update(b"north", record.SerializeToString(), 0)
    assert customers.limits("north") == replace(TIERS[FREE], max_robots=9)
    assert not customers.is_active("north")
    customers.update(b"north", None, 0)
    assert customers.limits("north") == UNLIMITED
    assert customers.is_active("north")


# --- at the gate


def fleet(**limits: int) -> GateBench:
    bench = GateBench()
    record = Customer(customer_id="north", tier="enterprise", active=True, **limits)
    bench.customers.update(b"north", record.SerializeToString(), 0)
    return bench


async def send(bench: GateBench, count: int, *, topic: str = FLEET_TOPIC, robot: str = "arm-1") -> list[str]:
    """Codes of the outcomes that so many new requests get; empty for one that was accepted."""
    before = len(bench.outcomes())
    for step in range(count):
        await answered(bench, request(step=before + step, robot_id=robot), topic=topic)
    return [outcome.rejection.code for outcome in bench.outcomes()[before:]]


async def test_a_fleet_beyond_its_limit_gets_an_outcome_that_says_so() -> None:
    bench = fleet(requests_per_day=3)
    assert await send(bench, 5) == ["", "", "", "quota_exceeded", "quota_exceeded"]
    refusal = bench.outcomes()[-1].rejection
    assert (refusal.status, refusal.violations[0].reason) == (429, "requests_per_day")
    assert refusal.retry_after_s > 0
    assert bench.answers("vla.replies.north.v1")[-1].outcome.rejection.code == "quota_exceeded"


async def test_a_redelivery_is_neither_counted_nor_judged_anew() -> None:
    bench = fleet(requests_per_day=2)
    for step in range(3):
        bench.ask(request(step=step), topic=FLEET_TOPIC)
    await bench.step(FLEET_TOPIC)
    bench.start()
    await bench.redeliver(FLEET_TOPIC)
    bench.infer()
    await bench.step(RESULTS)
    codes = [outcome.rejection.code for outcome in bench.outcomes()]
    assert sorted(codes) == ["", "", "quota_exceeded"]
    (count,) = bench.counter.counts.values()
    assert count == 3


async def test_what_the_api_has_counted_is_not_counted_again() -> None:
    bench = fleet(requests_per_day=1)
    assert await send(bench, 3, topic=REQUESTS) == ["", "", ""]
    assert bench.counter.asked == 0


async def test_a_fleet_has_so_many_robots_and_so_large_records() -> None:
    bench = fleet(max_robots=1)
    assert await send(bench, 1) == [""]
    assert await send(bench, 1, robot="arm-2") == ["quota_exceeded"]
    assert await send(fleet(max_payload_bytes=100), 1) == ["too_large"]


async def test_a_suspended_fleet_is_refused_and_one_without_a_record_is_not_limited() -> None:
    bench = GateBench()
    assert await send(bench, 2) == ["", ""]
    record = Customer(customer_id="north", tier="pro", active=False)
    bench.customers.update(b"north", record.SerializeToString(), 0)
    assert await send(bench, 1) == ["forbidden"]


async def test_a_gate_without_valkey_lets_everything_through() -> None:
    bench = fleet(requests_per_day=1, max_robots=1)
    bench.counter.away = True
    assert await send(bench, 3) == ["", "", ""]
