"""Shares of the device: no customer starves another, nobody saves turns up, and an order of its own stays its own."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_consumers.batching import BatchQueue, Dispatch, Waiting
from gpu_consumers.cost import CostModel
from gpu_consumers.fairness import Turns
from runtime.rates import EventRate


class Device:
    """A queue that is kept full by customers who send as much as they get room for."""

    def __init__(self, *, batch: int, a: float = 0.0, b: float = 0.0) -> None:
        self.cost = CostModel()
        for n in (1, batch, 1):
            self.cost.observe(n, a * n + b)
        self.queue: BatchQueue[int] = BatchQueue(
            capacity=10_000, batch_sizes=(batch,), cost=self.cost, arrivals=EventRate()
        )
        self.sent = 0

    def send(self, customer: str, robot: int, *, deadline_s: float = 100.0, arrived_s: float = 0.0) -> int:
        self.queue.offer(
            Waiting(
                f"{customer}\x1f{robot}", arrived_s, deadline_s, latest_only=False, item=self.sent, customer=customer
            )
        )
        self.sent += 1
        return self.sent - 1

    def next_batch(self, now_s: float = 0.0) -> tuple[Waiting[int], ...]:
        decision = self.queue.decide(now_s)
        assert isinstance(decision, Dispatch)
        return decision.batch


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), min_size=2),
    st.integers(1, 6),
    st.lists(st.floats(1, 50), min_size=1, max_size=20),
)
def test_customers_who_always_have_work_get_equal_parts_however_many_robots_they_have(
    robots: dict[str, int], batch: int, deadlines: list[float]
) -> None:
    device = Device(batch=batch)
    served: Counter[str] = Counter(dict.fromkeys(robots, 0))
    for number in range(10):
        for customer, count in robots.items():
            # Ten times the robots: ten times as many waiting. Everybody has enough for a whole batch.
            for robot in range(count * batch):
                device.send(customer, robot, deadline_s=deadlines[(number + robot) % len(deadlines)])
        served.update(waiting.customer for waiting in device.next_batch())
        assert max(served.values()) - min(served.values()) <= 1
    assert sum(served.values()) == 10 * batch


def test_one_customer_with_ten_times_the_robots_does_not_delay_another() -> None:
    device = Device(batch=8)
    for robot in range(100):
        device.send("fleet", robot, deadline_s=1.0)
    mine = {device.send("small", robot, deadline_s=50.0) for robot in range(4)}
    assert mine <= {waiting.item for waiting in device.next_batch()}


def test_what_one_leaves_the_others_have() -> None:
    device = Device(batch=8)
    for robot in range(100):
        device.send("fleet", robot)
    device.send("small", 0)
    assert Counter(waiting.customer for waiting in device.next_batch()) == {"small": 1, "fleet": 7}
    assert Counter(waiting.customer for waiting in device.next_batch()) == {"fleet": 8}


def test_whoever_was_away_has_saved_no_turns_up() -> None:
    device = Device(batch=4)
    for robot in range(100):
        device.send("steady", robot)
    for _ in range(10):
        device.next_batch()
    for robot in range(100):
        device.send("back", robot)
    counts = Counter(waiting.customer for _ in range(3) for waiting in device.next_batch())
    assert abs(counts["steady"] - counts["back"]) <= 1


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.floats(1, 9)), max_size=60), st.integers(1, 9))
def test_every_request_rides_once_in_its_robots_order_and_the_most_urgent_of_a_customer_first(
    requests: list[tuple[str, int, float]], batch: int
) -> None:
    device = Device(batch=batch)
    for customer, robot, deadline_s in requests:
        device.send(customer, robot, deadline_s=deadline_s)
    order: list[Waiting[int]] = []
    while len(device.queue):
        order += device.next_batch()
    assert sorted(waiting.item for waiting in order) == list(range(len(requests)))
    for name in {waiting.robot for waiting in order}:
        mine = [waiting.item for waiting in order if waiting.robot == name]
        assert mine == sorted(mine)
    for customer in "abc":
        robots = {robot for name, robot, _ in requests if name == customer}
        if len(robots) == [name for name, _, _ in requests].count(customer):
            own = [waiting.deadline_s for waiting in order if waiting.customer == customer]
            assert own == sorted(own)


def test_a_full_batch_goes_to_those_whom_it_still_helps() -> None:
    device = Device(batch=4, a=0.01, b=0.01)
    for robot in range(4):
        device.send("c", robot, deadline_s=0.03)
    helped = [device.send("c", robot, deadline_s=1.0) for robot in range(4, 8)]
    assert [waiting.item for waiting in device.next_batch()] == helped
    assert len(device.queue) == 4, "they may still ride in a smaller batch"


@given(st.lists(st.sampled_from("abcd"), max_size=100))
def test_turns_remember_only_who_is_ahead(names: list[str]) -> None:
    turns = Turns()
    for name in names:
        # The queue always takes the one whose turn is lowest among those who wait.
        before = turns.next_of(name)
        turns.take(name)
        assert turns.next_of(name) == before + 1
    turns.forget()
    assert len({turns.next_of(name) for name in "abcd"}) == 1


# --- work that comes too late


def test_what_cannot_be_ready_in_time_is_refused_before_it_costs_device_time() -> None:
    device = Device(batch=4, a=0.0, b=0.5)
    device.queue.measured(1, 0.5, now_s=10.0)
    early = device.send("c", 0, deadline_s=10.6)
    late = device.send("c", 1, deadline_s=10.4)
    assert [waiting.item for waiting in device.queue.take_expired(10.0)] == [late]
    assert [waiting.item for waiting in device.next_batch(10.0)] == [early]


def test_a_slow_batch_long_ago_refuses_nobody() -> None:
    device = Device(batch=4, a=0.0, b=60.0)
    device.queue.measured(1, 60.0, now_s=10.0)
    device.send("c", 0, deadline_s=12.0)
    assert device.queue.too_late(12.0, now_s=10.5)
    assert not device.queue.too_late(12.0, now_s=11.5), "the next batch is tried: the device may be quick again"
    assert device.queue.too_late(11.5, now_s=11.5)


@given(st.floats(0.001, 0.1), st.floats(0.001, 0.1), st.integers(2, 32), st.sampled_from([10.0, 0.1]))
def test_a_device_that_changes_its_pace_is_known_after_four_batches(a: float, b: float, n: int, pace: float) -> None:
    cost = CostModel()
    for _ in range(50):
        for size in (1, n):
            cost.observe(size, a * size + b)
    for _ in range(4):
        cost.observe(n, pace * (a * n + b))
    for size in (1, n):
        assert cost.seconds(size) == pytest.approx(pace * (a * size + b), rel=0.5)


def test_one_slow_batch_is_no_slow_device() -> None:
    cost = CostModel()
    for _ in range(50):
        cost.observe(1, 0.01)
    cost.observe(1, 5.0)
    assert cost.least_s < 0.2
