"""KEDA's and the HorizontalPodAutoscaler's formula, as the wave of load is scaled by it."""

from __future__ import annotations

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling.autoscaler import Autoscaler, metric, wanted
from benchmarks.scaling.scaled_object import Policy, Rules, ScaledObject, of_simulated, scaled_objects
from benchmarks.scaling.wave import DEVICE, Phase, shots
from runtime.errors import Fatal

_AT_ONCE = Rules(stabilization_window_seconds=0, policies=(Policy(type="Percent", value=10_000, period_seconds=15),))
_ALL_DOWN = Rules(stabilization_window_seconds=0, policies=(Policy(type="Percent", value=100, period_seconds=15),))


def spec(**changes: object) -> ScaledObject:
    """Without windows and limits of speed, unless they are given."""
    plain = {"lag_threshold": 10, "min_replica_count": 1, "max_replica_count": 8, "up": _AT_ONCE, "down": _ALL_DOWN}
    return ScaledObject.model_validate({"group": "gpu.m", "topic": "t", **plain, **changes})


def plays(scaler: Autoscaler, *looks: tuple[float, int], replicas: int = 1) -> list[int]:
    """What it wants at each look (second, lag of eight partitions together)."""
    found = []
    for now_s, lag in looks:
        replicas = scaler.desired(now_s, spread(lag), replicas)
        found.append(replicas)
    return found


def spread(lag: int, partitions: int = 8) -> list[int]:
    return [lag // partitions + (number < lag % partitions) for number in range(partitions)]


@pytest.mark.parametrize(
    ("lag", "replicas", "expected"),
    [(0, 1, 0), (9, 1, 1), (10, 1, 1), (21, 2, 2), (12, 1, 2), (31, 3, 3), (34, 3, 4), (28, 3, 3), (20, 3, 2)],
)
def test_a_replica_for_each_threshold_of_lag_and_none_moves_within_a_tenth(
    lag: int, replicas: int, expected: int
) -> None:
    assert wanted(spec(), spread(lag), replicas) == expected


def test_no_more_consumers_are_wanted_than_there_are_partitions_unless_idle_ones_are_allowed() -> None:
    lags = [50, 0, 0, 50]
    assert metric(spec(), lags) == 40
    assert metric(spec(limit_to_partitions_with_lag=True), lags) == 20
    assert metric(spec(allow_idle_consumers=True), lags) == 100


def test_bounds_hold_whatever_the_lag_is() -> None:
    scaler = Autoscaler(spec(min_replica_count=2, max_replica_count=3))
    assert plays(scaler, (0, 0), (15, 1000), (30, 0), replicas=1) == [2, 3, 2]


def test_fewer_come_only_when_less_was_wanted_for_the_whole_window() -> None:
    down = Rules(stabilization_window_seconds=60, policies=_ALL_DOWN.policies)
    looks = [(0, 40), (15, 5), (30, 25), (45, 5), (60, 5), (75, 5), (90, 5)]
    assert plays(Autoscaler(spec(down=down)), *looks) == [4, 4, 4, 4, 3, 3, 1]


def test_more_come_only_when_more_was_wanted_for_the_whole_window() -> None:
    up = Rules(stabilization_window_seconds=30, policies=_AT_ONCE.policies)
    scaler = Autoscaler(spec(up=up))
    assert plays(scaler, (0, 5), (15, 50), (30, 50), (45, 5), (60, 50)) == [1, 1, 5, 1, 1]


def test_policies_bound_how_many_come_and_go_within_their_period() -> None:
    up = Rules(
        stabilization_window_seconds=0,
        policies=(
            Policy(type="Percent", value=100, period_seconds=60),
            Policy(type="Pods", value=2, period_seconds=60),
        ),
    )
    down = Rules(stabilization_window_seconds=0, policies=(Policy(type="Pods", value=1, period_seconds=60),))
    scaler = Autoscaler(spec(up=up, down=down))
    looks = [(0, 80), (15, 80), (60, 80), (120, 80), (180, 0), (195, 0), (240, 0)]
    assert plays(scaler, *looks) == [3, 3, 6, 8, 7, 7, 6]
    slowest = up.model_copy(update={"select_policy": "Min"})
    assert plays(Autoscaler(spec(up=slowest)), (0, 80), (15, 80)) == [2, 2]
    assert plays(Autoscaler(spec(up=up.model_copy(update={"select_policy": "Disabled"}))), (0, 80)) == [1]


def test_none_are_kept_only_after_the_cooldown_and_some_come_back_beyond_the_activation_threshold() -> None:
    scaler = Autoscaler(spec(min_replica_count=0, activation_lag_threshold=3, cooldown_period=60))
    looks = [(0, 5), (15, 2), (30, 2), (60, 2), (75, 3), (90, 4)]
    assert plays(scaler, *looks, replicas=0) == [1, 1, 1, 0, 0, 1]


@given(
    lags=st.lists(st.integers(0, 10_000), min_size=1, max_size=16),
    replicas=st.integers(1, 20),
    threshold=st.integers(1, 500),
)
def test_what_is_wanted_carries_the_lag_within_the_tolerance(lags: list[int], replicas: int, threshold: int) -> None:
    seen = spec(lag_threshold=threshold)
    found = wanted(seen, lags, replicas)
    assert found * threshold * (1 + seen.tolerance) >= metric(seen, lags) - 1e-6
    assert found <= max(len(lags) + 1, replicas)
    assert found in (replicas, math.ceil(metric(seen, lags) / threshold))


@pytest.mark.parametrize("overlay", ["dev", "production"])
def test_every_manifest_scales_the_group_and_topic_of_its_deployment(overlay: str) -> None:
    documents = scaled_objects(overlay)
    assert documents
    for document in documents:
        found = ScaledObject.of(document)
        deployment = document["spec"]["scaleTargetRef"]["name"].removeprefix("gpu-")
        assert (found.group, found.topic) == (f"gpu.{deployment}", f"vla.accepted.{deployment}.v1")
        assert found.lag_threshold == int(document["spec"]["triggers"][0]["metadata"]["lagThreshold"])
        assert 1 <= found.min_replica_count <= found.max_replica_count
        behavior = document["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        assert found.down.stabilization_window_seconds == behavior["scaleDown"]["stabilizationWindowSeconds"]
        assert found.up.policies[0].value == behavior["scaleUp"]["policies"][0]["value"]


def test_what_a_manifest_leaves_out_has_the_defaults_of_kubernetes() -> None:
    document = yaml.safe_load(
        "metadata: {name: x}\n"
        "spec: {triggers: [{type: kafka, metadata: {consumerGroup: g, topic: t, lagThreshold: '7'}}]}"
    )
    found = ScaledObject.of(document)
    assert (found.lag_threshold, found.min_replica_count, found.max_replica_count) == (7, 0, 100)
    assert (found.up.stabilization_window_seconds, found.down.stabilization_window_seconds) == (0, 300)
    assert [(policy.type, policy.value) for policy in found.up.policies] == [("Percent", 100), ("Pods", 4)]
    document["spec"]["triggers"] = [{"type": "cron", "metadata": {}}]
    with pytest.raises(Fatal, match="no trigger of type kafka"):
        ScaledObject.of(document)


def test_a_faster_run_has_shorter_durations_and_the_same_numbers() -> None:
    whole = of_simulated(DEVICE, partitions=8)
    short = whole.faster(10)
    assert short.down.stabilization_window_seconds == whole.down.stabilization_window_seconds / 10
    assert [p.period_seconds * 10 for p in short.down.policies] == [p.period_seconds for p in whole.down.policies]
    assert short.sync_period == 1.5
    assert (short.lag_threshold, short.max_replica_count) == (whole.lag_threshold, whole.max_replica_count) == (4, 4)


def test_a_wave_is_evenly_spaced_and_no_robot_repeats_a_step() -> None:
    wave = shots((Phase(2, 1), Phase(1, 4)), robots=3)
    assert [shot.due_s for shot in wave] == [0, 1, 2, 2.25, 2.5, 2.75]
    assert len({(shot.robot, shot.step) for shot in wave}) == len(wave)
