"""The capacity model: arithmetic of the parts, and a simulation that keeps to it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import capacity
from benchmarks.capacity_model import Fleet, Inputs, Part, Run, Station, load_inputs, simulate, spread
from benchmarks.devices import H100_COGACT

FLEET = Fleet(
    robots=40,
    hz=0.5,
    gpus=1,
    ttl_ms=2000,
    planned_load=0.7,
    replication=3,
    broker_cores=8,
    partitions_a_gpu=2,
)
FIGURES = {
    "api_cpu_ms": 2.0,
    "gate_cpu_ms": 4.0,
    "gpu_host_cpu_ms": 3.0,
    "broker_cpu_ms": 4.0,
    "broker_bytes_s": 100e6,
    "hop_ms": 1.0,
    "frame_bytes": 50_000,
    "request_bytes": 50_000,
    "accepted_bytes": 50_000,
    "results_bytes": 1000,
    "outcomes_bytes": 1000,
    "replies_bytes": 1000,
    "postgres_rows_s": 2000.0,
    "parquet_bytes_s": 50e6,
    "lake_bytes": 50_000,
}
INPUTS = Inputs(fleet=FLEET, device=H100_COGACT, figures=FIGURES, sources=dict.fromkeys(FIGURES, "a test"))


def run_of(fleet: Fleet, seconds: float = 20.0, seed: int = 0) -> Run:
    return simulate(INPUTS, fleet, INPUTS.installed(fleet), seconds, seed=seed)


@given(
    rate=st.floats(0.1, 1e5),
    seconds=st.floats(1e-5, 1.0),
    planned=st.floats(0.1, 1.0),
)
def test_the_servers_needed_keep_the_load_as_planned_and_one_fewer_would_not(
    rate: float, seconds: float, planned: float
) -> None:
    part = Part("part", seconds, "more")
    servers = part.needed(rate, planned)
    assert part.load(rate, servers) <= planned * (1 + 1e-6)
    assert servers == 1 or part.load(rate, servers - 1) > planned * (1 - 1e-6)


@given(servers=st.integers(1, 1000), seconds=st.floats(1e-5, 1.0))
def test_a_part_saturates_where_its_load_is_one(servers: int, seconds: float) -> None:
    part = Part("part", seconds, "more")
    assert part.load(part.saturates_at(servers), servers) == pytest.approx(1.0)


def test_a_broker_is_as_narrow_as_the_narrower_of_processor_and_bytes() -> None:
    def broker_s(**figures: float) -> float:
        inputs = dataclasses.replace(INPUTS, figures={**FIGURES, **figures})
        return next(part.seconds for part in inputs.parts() if part.name == "broker")

    assert broker_s() == pytest.approx(3 * 103_000 / 100e6)
    assert broker_s(broker_cpu_ms=40.0) == pytest.approx(0.040 * 3 / 8)


def test_a_station_serves_first_come_first_served_and_each_server_for_itself() -> None:
    station = Station(2)
    assert station.book(0, now_s=0.0, service_s=1.0) == 1.0
    assert station.book(2, now_s=0.5, service_s=1.0) == 1.5
    assert station.book(1, now_s=0.5, service_s=1.0) == 1.0
    assert station.book(0, now_s=5.0, service_s=1.0) == 1.0
    assert station.loads(10.0) == pytest.approx([0.3, 0.1])


def test_robots_are_spread_by_their_keys_and_none_is_lost() -> None:
    counts = spread(1000, 16, 2)
    assert len(counts) == 16
    assert sum(counts) == 1000
    assert min(counts) > 0


def test_one_robot_waits_for_nothing_but_the_work_itself() -> None:
    run = run_of(dataclasses.replace(FLEET, robots=1), seconds=60.0)
    assert run.answered_share == 1.0
    assert set(run.batches) == {1}
    alone_ms = H100_COGACT.batch_ms(1) + 4 * 1.0
    assert alone_ms < run.latency_ms(0.5) < alone_ms + 30.0


def test_a_fleet_within_capacity_is_answered_in_time() -> None:
    run = run_of(FLEET)
    assert run.asked > 0
    assert run.outcomes == {"answered": run.asked}
    assert run.latency_ms(1.0) <= FLEET.ttl_ms


def test_an_overloaded_device_serves_what_it_can_in_time_and_refuses_the_rest() -> None:
    seconds = 30.0
    run = run_of(dataclasses.replace(FLEET, robots=200), seconds)
    served_s = sum(size * count for size, count in run.batches.items()) / seconds
    assert 0.8 * H100_COGACT.best_rate < served_s <= H100_COGACT.best_rate
    assert run.outcomes["expired"] > 0
    assert run.latency_ms(1.0) <= FLEET.ttl_ms


def test_the_same_seed_gives_the_same_run() -> None:
    assert run_of(FLEET, seed=3) == run_of(FLEET, seed=3)
    assert run_of(FLEET, seed=3).latencies_s != run_of(FLEET, seed=4).latencies_s


def test_every_committed_figure_has_a_date_and_a_source() -> None:
    inputs = load_inputs(capacity.INPUTS)
    assert set(FIGURES) <= set(inputs.figures)
    assert all(math.isfinite(value) and value > 0 for value in inputs.figures.values())


def test_a_figure_without_a_source_is_refused(tmp_path: Path) -> None:
    document = yaml.safe_load(capacity.INPUTS.read_text(encoding="utf-8"))
    del document["figures"]["gate_cpu_ms"]["source"]
    path = tmp_path / "capacity.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    with pytest.raises(ValueError, match="gate_cpu_ms needs a date and a source"):
        load_inputs(path)
