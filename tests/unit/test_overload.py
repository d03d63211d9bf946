"""A worker's queue at many times the load that the device can serve, in simulated time."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from gpu_consumers.batching import BatchQueue, Dispatch, Wait, Waiting
from gpu_consumers.cost import CostModel
from gpu_consumers.sizing import size_in_time
from runtime.rates import EventRate

SIZES = (1, 2, 4, 8, 16, 32)
A_S, B_S = 0.0095, 0.0105
#: Requests per second of full batches.
BEST = 32 / (32 * A_S + B_S)


@dataclass
class Served:
    """Requests by customer, and what became of them."""

    sent: Counter[str] = field(default_factory=Counter)
    in_time: Counter[str] = field(default_factory=Counter)
    late: int = 0
    refused: int = 0


def simulate(load: float, ttl_s: float, *, seconds: float = 8.0, room: int = 128) -> Served:
    """A log that brings the oldest first, read as fast as there is room, and a device of known speed.

    Eleven robots of which ten belong to `fleet`, one to `small`; together they send `load` times BEST.
    """
    cost = CostModel()
    for size in SIZES:
        cost.observe(size, A_S * size + B_S)
    queue: BatchQueue[float] = BatchQueue(capacity=room, batch_sizes=SIZES, cost=cost, arrivals=EventRate())
    rng = random.Random(7)
    log: list[tuple[float, str]] = []
    at = 0.0
    while (at := at + rng.expovariate(load * BEST)) < seconds:
        log.append((at, rng.choice(["fleet"] * 10 + ["small"])))
    served = Served(sent=Counter(customer for _, customer in log))
    now, read = 0.0, 0

    def take_in(until_s: float) -> None:
        """As the fetch and infer stages do, while the device is busy too."""
        nonlocal read
        while read < len(log) and log[read][0] <= until_s and len(queue) < room - SIZES[-1]:
            sent_s, customer = log[read]
            at_s = max(sent_s, now)
            read += 1
            if queue.too_late(sent_s + ttl_s, at_s):
                served.refused += 1
                continue
            robot = f"{customer}-{read % 50}"
            queue.offer(Waiting(robot, at_s, sent_s + ttl_s, latest_only=False, item=sent_s, customer=customer))
            if len(queue) > queue.max_batch:
                served.refused += len(queue.take_expired(at_s))

    while now < seconds:
        take_in(now)
        served.refused += len(queue.take_expired(now))
        match queue.decide(now):
            case Dispatch(batch):
                took_s = A_S * len(batch) + B_S
                take_in(now + took_s)
                now += took_s
                queue.measured(len(batch), took_s, now)
                for waiting in batch:
                    if waiting.deadline_s >= now:
                        served.in_time[waiting.customer] += 1
                    else:
                        served.late += 1
            case Wait(wait_s):
                now += wait_s
            case _:
                now = max(log[read][0], now) if read < len(log) else seconds
    return served


@pytest.mark.parametrize("load", [1.5, 3.0, 10.0])
@pytest.mark.parametrize("ttl_s", [0.5, 2.0])
def test_under_overload_the_device_serves_as_much_as_it_can_and_nothing_in_vain(load: float, ttl_s: float) -> None:
    served = simulate(load, ttl_s)
    assert sum(served.in_time.values()) >= 0.9 * 8.0 * BEST
    assert served.late <= 0.01 * sum(served.in_time.values())


def test_below_its_limit_everybody_is_served_in_time() -> None:
    served = simulate(0.8, 2.0)
    assert served.refused == served.late == 0
    # But for those who are still waiting at the end.
    assert sum(served.in_time.values()) >= 0.95 * sum(served.sent.values())


def test_one_fleet_with_ten_times_the_requests_does_not_starve_another() -> None:
    served = simulate(10.0, 2.0)
    share = served.in_time["small"] / sum(served.in_time.values())
    assert served.sent["small"] / sum(served.sent.values()) < 0.11
    assert share > 0.2


@pytest.mark.parametrize(
    ("left_s", "size"),
    [
        ([0.03] + [1.0] * 20, 1),  # the urgent one first: the others still make it
        ([0.05, 0.05] + [1.0] * 20, 2),
        ([1.0] * 21, 21),
        ([0.10] * 64, 8),  # overload: what serves most in time, which full batches would not
        ([0.10] * 4 + [1.0] * 60, 32),  # overload: full batches for those who can wait
        ([0.001], 1),  # nobody makes it: the usual
    ],
)
def test_a_batch_is_no_larger_than_lets_most_of_them_be_in_time(left_s: list[float], size: int) -> None:
    cost = CostModel()
    for n in SIZES:
        cost.observe(n, A_S * n + B_S)
    assert size_in_time(left_s, min(len(left_s), 32), SIZES, cost) == size
