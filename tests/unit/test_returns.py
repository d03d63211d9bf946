"""Robots that ask again at once are waited for, others are not: replayed on a virtual clock."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_consumers.batching import BatchQueue, Dispatch, Idle, Waiting
from gpu_consumers.cost import CostModel
from gpu_consumers.returns import Returns
from runtime.rates import EventRate

#: A published table of an H100 (benchmarks/devices.py), seconds.
PER_ITEM_S, BASE_S = 0.0226, 0.0496
H100_COGACT = {size: PER_ITEM_S * size + BASE_S for size in (1, 2, 3, 4, 6, 8, 12, 16, 24)}
#: Measured (benchmarks/results/2026-11-26-h200-policies.md).
H200_PI0 = {1: 0.0345, 2: 0.0427, 4: 0.0505, 8: 0.0661, 16: 0.1031, 32: 0.1801}


def play(
    robots: int, back_s: Callable[[int, int], float], seconds: float = 30.0, device: Mapping[int, float] = H100_COGACT
) -> tuple[float, list[float]]:
    """Served a second in the second half, and how long each batch waited beside an idle device.

    `back_s(robot, n)`: from a robot's n-th answer to its next request. device: seconds of a batch of each size.
    """
    queue: BatchQueue[int] = BatchQueue(
        capacity=10 * robots, batch_sizes=tuple(device), cost=CostModel(), arrivals=EventRate()
    )
    for size, took_s in device.items():  # as in the warm-up
        queue.measured(size, took_s, 0.0)
    events = [(back_s(robot, 0), robot) for robot in range(robots)]
    heapq.heapify(events)
    answered = [0] * robots
    now, free_s, served, idle = 0.0, 0.0, 0, []
    while now < seconds:
        while events and events[0][0] <= now:
            at, robot = heapq.heappop(events)
            queue.offer(Waiting(str(robot), at, at + 100, False, robot))
        decision = queue.decide(now)
        if isinstance(decision, Dispatch):
            idle.append(now - max(free_s, min(w.arrived_s for w in decision.batch)))
            took_s = next(took_s for size, took_s in device.items() if size >= len(decision.batch))
            now = free_s = now + took_s
            queue.measured(len(decision.batch), took_s, now)
            for waiting in decision.batch:
                answered[waiting.item] += 1
                heapq.heappush(events, (now + back_s(waiting.item, answered[waiting.item]), waiting.item))
            served += len(decision.batch) if now > seconds / 2 else 0
        else:
            next_s = events[0][0] if events else seconds
            now = next_s if isinstance(decision, Idle) else min(next_s, now + decision.seconds)
    return served / (seconds / 2), idle


@pytest.mark.parametrize("robots", [2, 4, 8, 16])
def test_robots_in_closed_loop_ride_together(robots: int) -> None:
    rate, _ = play(robots, lambda robot, n: 0.010 + 0.002 * ((7 * robot + 3 * n) % 5))
    together_s = 0.018 + PER_ITEM_S * robots + BASE_S
    assert rate >= 0.93 * robots / together_s


@pytest.mark.parametrize("robots", [4, 8, 16])
def test_robots_whose_way_is_long_beside_a_quick_device_ride_together(robots: int) -> None:
    """As measured on an H200: 14 ms from answer to request, in no order, beside batches of 50 to 103 ms."""
    random = Random(robots)
    gaps_s = [0.014 + random.gauss(0, 0.002) for _ in range(100_000)]
    rate, _ = play(robots, lambda robot, n: gaps_s[(31 * n + robot) % len(gaps_s)], device=H200_PI0)
    assert rate >= 0.93 * robots / (0.018 + H200_PI0[robots])


def test_a_robot_alone_waits_for_nobody() -> None:
    _, idle = play(1, lambda robot, n: 0.012)
    assert max(idle) == 0


def test_robots_that_play_their_chunks_out_are_not_waited_for() -> None:
    _, idle = play(6, lambda robot, n: 1.0 + 0.05 * robot + 0.013 * (n % 3))
    assert max(idle) == 0


def test_the_device_never_idles_longer_than_a_larger_batch_saves() -> None:
    # Robots that keep to their gap for a while and then stay away.
    _, idle = play(5, lambda robot, n: 0.010 if n % 9 else 3.0)
    assert max(idle) <= BASE_S + 1e-9


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.floats(0, 1)), max_size=200))
def test_whoever_is_expected_was_served_and_has_not_come_back(steps: list[tuple[int, bool, float]]) -> None:
    returns, now, away = Returns(most_robots=5), 0.0, set()
    for number, is_served, gap_s in steps:
        now += gap_s
        robot = str(number)
        if is_served:
            returns.served([robot], now, soon_s=0.5)
            away.add(robot)
        else:
            returns.came(robot, now)
            away.discard(robot)
        expected = returns.expected(now)
        assert expected == sorted(expected)
        assert len(expected) <= min(5, len(away))
        assert all(now < due.latest_s <= now + 0.5 and due.likely_s <= due.latest_s for due in expected)
