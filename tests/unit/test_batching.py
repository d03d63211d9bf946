"""Batching decisions, replayed: nothing lost or doubled, order per robot, deadlines, no waiting without gain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_consumers.batching import BatchQueue, Dispatch, Idle, QueueFull, Wait, Waiting
from gpu_consumers.cost import CostModel
from runtime.rates import EventRate

SIZES = (1, 2, 4, 8)


def queue(
    *, capacity: int = 64, sizes: tuple[int, ...] = SIZES, a: float = 0.0, b: float = 0.0, rate: float = 0.0
) -> BatchQueue[int]:
    cost, arrivals = CostModel(), EventRate()
    for n in (1, 8):
        cost.observe(n, a * n + b)
    for _ in range(round(rate)):
        arrivals.happened(0.0)
    return BatchQueue(capacity=capacity, batch_sizes=sizes, cost=cost, arrivals=arrivals)


def waiting(
    item: int, robot: str = "r", arrived: float = 0.0, deadline: float = 100.0, latest: bool = False
) -> Waiting[int]:
    return Waiting(robot, arrived, deadline, latest, item)


def items(decision: Dispatch[int] | Wait | Idle) -> list[int]:
    assert isinstance(decision, Dispatch), decision
    return [w.item for w in decision.batch]


@dataclass(frozen=True)
class Arrival:
    gap_s: float
    robot: str
    ttl_s: float
    latest_only: bool


ARRIVALS = st.lists(
    st.builds(
        Arrival,
        st.sampled_from([0.0, 0.0, 0.001, 0.05, 1.0]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([0.0, 0.002, 0.1, 5.0]),
        st.booleans(),
    ),
    max_size=60,
)


@given(
    ARRIVALS,
    st.floats(0, 0.2),
    st.floats(0, 0.2),
    st.sets(st.integers(1, 16), min_size=1, max_size=5),
    st.integers(1, 20),
    st.booleans(),
)
def test_every_request_leaves_exactly_once_in_time_and_in_order(
    arrivals: list[Arrival], a: float, b: float, sizes: set[int], capacity: int, foresees: bool
) -> None:
    q = queue(capacity=capacity, sizes=tuple(sizes), a=a, b=b)
    now = 0.0
    end: dict[str, list[Any]] = {"run": [], "expired": [], "superseded": [], "full": []}
    robots: dict[int, str] = {}

    def serve(until: float) -> None:
        """The device's loop up to a moment; every round moves time on or takes something out."""
        nonlocal now
        for _ in range(1000):
            end["expired"] += [w.item for w in q.take_expired(now)]
            decision = q.decide(now)
            if isinstance(decision, Dispatch):
                assert 1 <= len(decision.batch) <= max(sizes)
                assert all(w.deadline_s > now for w in decision.batch)
                end["run"] += [w.item for w in decision.batch]
                took_s = a * len(decision.batch) + b
                now += took_s
                if foresees:
                    q.measured(len(decision.batch), took_s, now)
            elif isinstance(decision, Wait):
                assert 0 < decision.seconds <= b + 1e-9
                if now + decision.seconds > until:
                    break
                now += decision.seconds
            else:
                break
        else:
            pytest.fail("the loop does not come to rest")
        now = max(now, until)

    at = 0.0
    for index, arrival in enumerate(arrivals):
        at += arrival.gap_s
        serve(at)
        robots[index] = arrival.robot
        try:
            customer = "c-1" if arrival.robot == "a" else "c-2"
            entry = Waiting(arrival.robot, now, at + arrival.ttl_s, arrival.latest_only, index, customer)
            gone = q.offer(entry)
        except QueueFull:
            assert len(q) == capacity
            end["full"].append(index)
            continue
        assert all(w.robot == arrival.robot and arrival.latest_only for w in gone)
        end["superseded"] += [w.item for w in gone]
    serve(now + 100)
    assert len(q) == 0
    assert sorted(item for left in end.values() for item in left) == list(range(len(arrivals)))
    for robot in "abc":
        mine = [index for index in end["run"] if robots[index] == robot]
        assert mine == sorted(mine)


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=30, unique=True))
def test_the_most_urgent_robots_ride_first(deadlines: list[float]) -> None:
    q = queue()
    for index, deadline in enumerate(deadlines):
        q.offer(waiting(index, robot=str(index), deadline=deadline))
    order: list[int] = []
    while not isinstance(decision := q.decide(0.0), Idle):
        order += items(decision)
    assert order == sorted(range(len(deadlines)), key=lambda index: deadlines[index])


def test_an_urgent_request_pulls_its_robots_older_ones_along() -> None:
    q = queue(sizes=(2,))
    q.offer(waiting(0, robot="slow", deadline=50))
    q.offer(waiting(1, robot="mixed", deadline=90))
    q.offer(waiting(2, robot="mixed", deadline=1))
    assert items(q.decide(0.0)) == [1, 2]


def test_a_newer_observation_supersedes_only_its_own_robots_waiting_ones() -> None:
    q = queue()
    q.offer(waiting(0, robot="a"))
    q.offer(waiting(1, robot="a", latest=True))
    q.offer(waiting(2, robot="b"))
    assert [w.item for w in q.offer(waiting(3, robot="a", latest=True))] == [1]
    assert q.offer(waiting(4, robot="b")) == []
    assert sorted(items(q.decide(0.0))) == [2, 3, 4]


def test_superseding_makes_room_in_a_full_queue() -> None:
    q = queue(capacity=1)
    q.offer(waiting(0))
    with pytest.raises(QueueFull):
        q.offer(waiting(1))
    assert [w.item for w in q.offer(waiting(2, latest=True))] == [0]


def test_an_idle_device_does_not_wait_while_it_keeps_up() -> None:
    q = queue(a=0.001, b=0.010, rate=50)
    q.offer(waiting(0))
    assert items(q.decide(0.0)) == [0]


def test_it_waits_for_company_when_requests_come_faster_than_it_serves_and_at_most_b() -> None:
    q = queue(a=0.001, b=0.010, rate=500)
    q.offer(waiting(0))
    decision = q.decide(0.0)
    assert isinstance(decision, Wait)
    assert decision.seconds == pytest.approx(0.010)
    assert isinstance(q.decide(0.004), Wait)
    assert items(q.decide(0.0101)) == [0]


def test_it_never_waits_a_deadline_away() -> None:
    q = queue(a=0.001, b=0.010, rate=500)
    q.offer(waiting(0, deadline=0.014))
    decision = q.decide(0.0)
    assert isinstance(decision, Wait)
    assert decision.seconds == pytest.approx(0.003)


def test_a_full_batch_leaves_at_once() -> None:
    q = queue(a=0.001, b=0.010, rate=5000)
    for index in range(9):
        q.offer(waiting(index, robot=str(index)))
    assert len(items(q.decide(0.0))) == 8
    assert len(q) == 1


@pytest.mark.parametrize(("a", "b", "first"), [(0.010, 0.001, 4), (0.001, 0.010, 5)])
def test_padding_is_paid_only_where_a_second_batch_costs_more(a: float, b: float, first: int) -> None:
    q = queue(a=a, b=b)
    for index in range(5):
        q.offer(waiting(index, robot=str(index)))
    assert len(items(q.decide(0.0))) == first


def test_a_limited_batch_size_is_kept() -> None:
    q = queue()
    q.limit_batch(3)
    assert q.max_batch == 2
    q.limit_batch(1)
    for index in range(4):
        q.offer(waiting(index))
    assert [items(q.decide(0.0)) for _ in range(4)] == [[0], [1], [2], [3]]


def test_expired_requests_are_split_out_and_never_dispatched() -> None:
    q = queue()
    q.offer(waiting(0, deadline=1.0))
    q.offer(waiting(1, deadline=3.0))
    assert isinstance(q.decide(5.0), Idle)
    assert items(q.decide(2.0)) == [1]
    assert [w.item for w in q.take_expired(2.0)] == [0]
    assert len(q) == 0


@given(st.floats(0, 1), st.floats(0, 1))
def test_the_fit_finds_a_line_that_is_there(a: float, b: float) -> None:
    cost = CostModel()
    for n in (1, 2, 4, 8, 3, 1, 8):
        cost.observe(n, a * n + b)
    assert cost.per_item_s == pytest.approx(a, abs=1e-6)
    assert cost.base_s == pytest.approx(b, abs=1e-6)


@given(st.lists(st.tuples(st.integers(-1, 64), st.floats(allow_nan=True)), max_size=50))
def test_the_fit_is_never_negative_nor_undefined(measured: list[tuple[int, float]]) -> None:
    cost = CostModel()
    for n, seconds in measured:
        cost.observe(n, min(seconds, 1e6))
    assert 0 <= cost.per_item_s < math.inf
    assert 0 <= cost.base_s < math.inf


def test_the_fit_follows_a_device_that_slows_down() -> None:
    cost = CostModel(forgetting=0.9)
    for n in (1, 8):
        cost.observe(n, 0.001 * n + 0.010)
    for _ in range(100):
        for n in (1, 8):
            cost.observe(n, 0.002 * n + 0.030)
    assert cost.per_item_s == pytest.approx(0.002, rel=0.01)
    assert cost.base_s == pytest.approx(0.030, rel=0.01)


def test_batches_of_one_size_move_the_base_and_leave_the_slope() -> None:
    cost = CostModel(forgetting=0.9)
    for n in (1, 8):
        cost.observe(n, 0.001 * n + 0.010)
    for _ in range(500):
        cost.observe(8, 0.100)
    assert cost.per_item_s > 0
    assert cost.seconds(8) == pytest.approx(0.100, rel=0.01)


def test_the_arrival_rate_rises_to_the_truth_and_falls_when_nothing_comes() -> None:
    rate = EventRate(window_s=1.0)
    assert rate.per_second(0.0) == 0.0
    for index in range(1000):
        rate.happened(index / 100)
    assert rate.per_second(9.99) == pytest.approx(100, rel=0.02)
    assert rate.per_second(15.0) < 1
