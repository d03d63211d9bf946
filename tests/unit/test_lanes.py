"""One partition's records in order, many partitions' at once, and nothing begun that is not finished."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from functools import partial

from hypothesis import given
from hypothesis import strategies as st

from stream_agents.lanes import Lanes


class Bench:
    """Work that ends when the test says so."""

    def __init__(self, limit: int = 4) -> None:
        self.errors: list[Exception] = []
        self.lanes = Lanes(limit, self.errors.append)
        self.begun: dict[bytes, list[int]] = defaultdict(list)
        self.done: dict[bytes, list[int]] = defaultdict(list)
        self.gates: dict[int, asyncio.Event] = {}

    async def start(self, lane: bytes, number: int, error: Exception | None = None) -> None:
        gate = self.gates[number] = asyncio.Event()

        async def work() -> None:
            self.begun[lane].append(number)
            await gate.wait()
            if error is not None:
                raise error
            self.done[lane].append(number)

        await self.lanes.start(lane, work, self.lanes.epoch)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_partition_waits_for_its_own_records_only() -> None:
    bench = Bench()
    for lane, number in ((b"a", 1), (b"a", 2), (b"b", 3)):
        await bench.start(lane, number)
    await settle()
    assert bench.begun == {b"a": [1], b"b": [3]}
    bench.gates[1].set()
    await settle()
    assert bench.begun[b"a"] == [1, 2]


async def test_no_more_than_the_limit_is_begun() -> None:
    bench = Bench(limit=2)
    await bench.start(b"a", 1)
    await bench.start(b"b", 2)
    third = asyncio.create_task(bench.start(b"c", 3))
    await settle()
    assert not third.done()
    bench.gates[2].set()
    await third
    await settle()
    assert bench.begun[b"c"] == [3]


async def test_what_was_begun_is_finished_although_its_agent_is_cancelled() -> None:
    bench = Bench()
    agent = asyncio.create_task(bench.start(b"a", 1))
    await settle()
    agent.cancel()
    bench.gates[1].set()
    assert await bench.lanes.drain(timeout_s=10)
    assert bench.done[b"a"] == [1]


async def test_drain_tells_when_something_is_left() -> None:
    bench = Bench()
    await bench.start(b"a", 1)
    assert not await bench.lanes.drain(timeout_s=0)
    bench.gates[1].set()
    assert await bench.lanes.drain(timeout_s=10)
    assert await bench.lanes.drain(timeout_s=0)


async def test_what_has_not_begun_when_a_drain_ends_is_never_begun() -> None:
    """Its partition may be another process's by then."""
    bench = Bench(limit=3)
    for number in (1, 2, 3):
        await bench.start(b"a", number)
    waits_for_room = asyncio.create_task(bench.start(b"b", 4))
    await settle()
    assert not await bench.lanes.drain(timeout_s=0)
    bench.gates[1].set()
    await waits_for_room
    await bench.start(b"c", 5)
    bench.gates[5].set()
    assert await bench.lanes.drain(timeout_s=10)
    assert bench.begun == {b"a": [1], b"c": [5]}


async def test_a_drain_waits_for_what_gets_room_meanwhile() -> None:
    bench = Bench(limit=1)
    await bench.start(b"a", 1)
    waits_for_room = asyncio.create_task(bench.start(b"b", 2))
    draining = asyncio.create_task(bench.lanes.drain(timeout_s=10))
    await settle()
    bench.gates[1].set()
    await waits_for_room
    await settle()
    assert not draining.done()
    bench.gates[2].set()
    assert await draining
    assert bench.done == {b"a": [1], b"b": [2]}


async def test_nothing_behind_a_failure_on_its_lane_is_begun() -> None:
    bench = Bench()
    failure = RuntimeError("no way on")
    await bench.start(b"a", 1, failure)
    await bench.start(b"a", 2)
    await bench.start(b"b", 3)
    for gate in bench.gates.values():
        gate.set()
    assert await bench.lanes.drain(timeout_s=10)
    assert bench.errors == [failure]
    assert bench.begun == {b"a": [1], b"b": [3]}


@given(st.lists(st.tuples(st.sampled_from([b"a", b"b", b"c"]), st.integers(0, 3)), max_size=30), st.integers(1, 8))
def test_each_lane_ends_in_the_order_in_which_it_was_begun(work: list[tuple[bytes, int]], limit: int) -> None:
    async def run() -> None:
        failures: list[Exception] = []
        lanes = Lanes(limit, failures.append)
        done: dict[bytes, list[int]] = defaultdict(list)

        async def one(lane: bytes, number: int, turns: int) -> None:
            for _ in range(turns):
                await asyncio.sleep(0)
            done[lane].append(number)

        for number, (lane, turns) in enumerate(work):
            await lanes.start(lane, partial(one, lane, number, turns), lanes.epoch)
        assert await lanes.drain(timeout_s=10)
        assert not failures
        assert sum(map(len, done.values())) == len(work)
        assert all(numbers == sorted(numbers) for numbers in done.values())

    asyncio.run(run())
