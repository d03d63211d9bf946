"""The load generator and what is made of its samples."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import layers
from benchmarks.devices import DEVICES, H100_COGACT, SIMULATED, card
from benchmarks.load import OK, Answer, Sample, closed_loop, open_loop, periodic, steady_rate
from benchmarks.peers.policy_host import PolicyHost, Seen
from schemas.cards import ModelCard
from schemas.messages import StageTimes

#: 2026-01-01, seconds.
BEGAN_S = 1_767_225_600.0


def sample(*, due_s: float = 0.0, sent_s: float = 0.0, done_s: float = 0.1, code: str = OK, **timings: float) -> Sample:
    return Sample(BEGAN_S + due_s, BEGAN_S + sent_s, BEGAN_S + done_s, 0, Answer("id", code, timings, 1))


def stage_times(*marks_s: float) -> StageTimes:
    names = [field.name for field in StageTimes.DESCRIPTOR.fields]
    return StageTimes(**{name: int((BEGAN_S + mark) * 1e6) for name, mark in zip(names, marks_s, strict=True)})


@given(st.integers(1, 20), st.sampled_from([0.5, 1.0, 5.0, 30.0]), st.floats(0.1, 10))
def test_a_schedule_has_the_rate_that_was_asked_for(robots: int, hz: float, seconds: float) -> None:
    shots = periodic(robots, hz, seconds)
    assert [shot.due_s for shot in shots] == sorted(shot.due_s for shot in shots)
    assert all(0 <= shot.due_s < seconds for shot in shots)
    assert abs(len(shots) - robots * hz * seconds) <= robots
    assert len({(shot.robot, shot.step) for shot in shots}) == len(shots)


async def test_a_service_that_stands_still_holds_no_later_request_back_and_is_charged_for_all() -> None:
    shots = periodic(1, 100, 0.2)
    released = asyncio.Event()
    sent = 0

    async def send(robot: int, step: int) -> Answer:
        nonlocal sent
        sent += 1
        if sent == len(shots):
            released.set()
        # Nothing is answered before everything was sent: a closed loop would stay here for ever.
        await released.wait()
        return Answer("id", OK)

    samples = await open_loop(shots, send, lambda elapsed_s, so_far: None)
    assert len(samples) == len(shots)
    assert samples[0].latency_ms > samples[-1].latency_ms
    assert all(s.latency_ms >= (s.done_s - s.sent_s) * 1000 for s in samples)


async def test_a_request_that_is_never_answered_is_counted_as_lost() -> None:
    async def send(robot: int, step: int) -> Answer:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    samples = await open_loop(periodic(1, 10, 0.1), send, lambda elapsed_s, so_far: None, grace_s=0.01)
    assert [s.answer.code for s in samples] == ["lost"]
    assert layers.share_within(samples, 1e9) == 0.0


async def test_a_closed_loop_has_one_request_a_client_at_a_time() -> None:
    in_flight: set[int] = set()

    async def send(robot: int, step: int) -> Answer:
        assert robot not in in_flight
        in_flight.add(robot)
        await asyncio.sleep(0)
        in_flight.remove(robot)
        return Answer("id", OK)

    samples = await closed_loop(3, 0.5, send, lambda elapsed_s, so_far: None)
    assert {s.robot for s in samples} == {0, 1, 2}


@given(st.integers(2, 40), st.integers(1, 32), st.floats(0.01, 1.0))
def test_the_rate_of_whole_batches_is_not_off_by_one_of_them(batches: int, size: int, every_s: float) -> None:
    samples = [sample(done_s=0.5 + batch * every_s) for batch in range(batches) for _ in range(size)]
    assert steady_rate(samples, BEGAN_S + 1e6) == pytest.approx(size / every_s, rel=1e-3)


def test_answers_after_the_load_has_ended_do_not_count_for_the_rate() -> None:
    samples = [sample(done_s=number / 10) for number in range(10)] + [sample(done_s=100.0)]
    assert steady_rate(samples, BEGAN_S + 1.0) == pytest.approx(10.0, rel=1e-3)
    assert steady_rate([], BEGAN_S) == 0.0


def test_stages_and_layers_of_a_rest_request_add_up_to_its_latency() -> None:
    asked = sample(due_s=0.0, sent_s=0.001, done_s=0.060, ingest=4.0, reply=5.0, total=50.0)
    times = stage_times(0.010, 0.012, 0.015, 0.020, 0.040, 0.041, 0.045, 0.046)
    stages = layers.stages_ms(asked, times)
    assert sum(stages.values()) == pytest.approx(60.0, abs=0.01)
    split = layers.layers_ms(stages)
    assert tuple(split) == layers.LAYERS
    assert split["model"] == pytest.approx(20.0, abs=0.01)
    assert split["pre/post"] == pytest.approx(5.0 + 1.0, abs=0.01)
    assert sum(split.values()) + stages["client late"] == pytest.approx(60.0, abs=0.01)
    assert layers.besides_model_ms(split) == pytest.approx(60.0 - 1.0 - 20.0, abs=0.01)


def test_a_direct_producers_wire_is_its_own_two_hops() -> None:
    stages = layers.stages_ms(
        sample(sent_s=0.0, done_s=0.050), stage_times(0.010, 0.012, 0.015, 0.020, 0.040, 0.041, 0.045, 0.046)
    )
    split = layers.layers_ms(stages)
    assert split["wire"] == pytest.approx(10.0 + 4.0, abs=0.01)
    assert sum(split.values()) == pytest.approx(50.0, abs=0.01)


def test_cumulative_layers_end_at_the_whole() -> None:
    row = {"model": 20.0, "pre/post": 5.0, "pipeline": 4.0, "wire": 1.0}
    found = layers.cumulative([row, row])
    assert [q.p50 for q in found.values()] == [20.0, 25.0, 29.0, 30.0]


def test_a_simulated_device_takes_the_time_of_its_published_table() -> None:
    # 165.2, 468.2 and 485.5 observations a second, 12 of them an inference.
    for size, published in ((1, 165.2), (16, 468.2), (24, 485.5)):
        assert H100_COGACT.rate(size) * 12 == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("name", DEVICES)
def test_a_simulated_device_says_so_in_its_card(name: str) -> None:
    made = ModelCard.model_validate(card(DEVICES[name], name, ("base",)))
    assert SIMULATED in made.title.lower()
    assert made.batch_sizes == DEVICES[name].batch_sizes


def test_a_policy_host_gives_each_observation_of_a_batch_its_chunk() -> None:
    host = PolicyHost("instant")
    seen = Seen("pick up the red block", np.zeros((64, 64, 3), np.uint8), np.zeros(8, np.float32))
    chunks = host.infer([host.prepare(seen) for _ in range(3)])
    assert [chunk.shape for chunk in chunks] == [(8, 7)] * 3
