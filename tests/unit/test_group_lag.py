"""What is behind is counted from the broker's figures, whether or not anybody consumes."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined] # re-exported without __all__
from hypothesis import given
from hypothesis import strategies as st

from runtime.broker_offsets import KafkaOffsets, TimeSearch
from runtime.group_lag import GroupLag, Lag, behind, watched_groups
from runtime.metrics import Metrics
from schemas.topics import EMBEDDER_GROUP, GATE_APP, PARQUET_GROUP, POSTGRES_GROUP, REQUESTS, RESULTS
from tests.cards import cards
from tests.unit.api_stand_ins import ManualClock, ScriptedOffsets

ACCEPTED = "vla.accepted.test-model-a.v1"


@given(
    committed=st.none() | st.integers(0, 2**40),
    low=st.integers(0, 2**40),
    length=st.integers(0, 2**40),
)
def test_nobody_is_behind_by_more_than_the_log_holds_or_less_than_nothing(
    committed: int | None, low: int, length: int
) -> None:
    lag = behind(committed, low, low + length)
    assert 0 <= lag <= length
    if committed is None or committed <= low:
        assert lag == length


def _group_lag(offsets: ScriptedOffsets, metrics: Metrics) -> GroupLag:
    groups = watched_groups(cards(), ["north"])
    return GroupLag(offsets=offsets, groups=groups, metrics=metrics, clock=offsets.clock, now=lambda: 1000.0)


def test_every_group_of_an_installation_is_watched_a_fleet_of_its_own_included() -> None:
    groups = {watched.group: watched for watched in watched_groups(cards(), ["north"])}
    assert list(groups) == [GATE_APP, "gpu.test-model-a", POSTGRES_GROUP, PARQUET_GROUP, EMBEDDER_GROUP]
    assert groups[GATE_APP].topics == (REQUESTS, "vla.requests.north.v1", RESULTS)
    assert groups["gpu.test-model-a"].deployment == "test-model-a"


def test_a_group_that_never_came_is_behind_by_everything_and_as_old_as_its_first_record() -> None:
    offsets, metrics = ScriptedOffsets(), Metrics()
    lag = _group_lag(offsets, metrics)
    offsets.logs[REQUESTS] = (5, 9)
    offsets.appended[REQUESTS, 5] = 940_000
    lag.look()
    assert lag.of(GATE_APP) == Lag(records=4, oldest_age_s=60.0, rate_per_s=None)
    assert metrics.registry.get_sample_value("vla_group_oldest_age_seconds", {"group": GATE_APP}) == 60
    offsets.commits[GATE_APP, REQUESTS] = 9
    offsets.clock.now_s += 4
    lag.look()
    assert lag.of(GATE_APP) == Lag(records=0, oldest_age_s=0.0, rate_per_s=2.25)


def test_an_age_that_the_broker_did_not_tell_in_time_is_unknown_and_not_nothing() -> None:
    offsets, metrics = ScriptedOffsets(), Metrics()
    lag = _group_lag(offsets, metrics)
    offsets.logs[ACCEPTED] = (0, 3)
    ages = (
        ("vla_group_oldest_age_seconds", {"group": "gpu.test-model-a"}),
        ("vla_deployment_oldest_age_seconds", {"deployment": "test-model-a"}),
    )
    for appended, age_s in (({(ACCEPTED, 0): 940_000}, 60.0), ({}, None), ({(ACCEPTED, 0): 930_000}, 70.0)):
        offsets.appended = appended
        lag.look()
        assert lag.of("gpu.test-model-a") == Lag(records=3, oldest_age_s=age_s, rate_per_s=None)
        assert [metrics.registry.get_sample_value(name, labels) for name, labels in ages] == [age_s, age_s]


def test_the_age_of_the_youngest_is_not_told_for_that_of_the_oldest() -> None:
    offsets = ScriptedOffsets()
    lag = _group_lag(offsets, Metrics())
    offsets.logs |= {REQUESTS: (0, 1), RESULTS: (0, 1)}
    offsets.appended[RESULTS, 0] = 999_000
    lag.look()
    assert lag.of(GATE_APP) == Lag(records=2, oldest_age_s=None, rate_per_s=None)


class HastyAdmin:
    """A broker whose first partition tells at once what it was asked, and whose second one never comes to an end."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def list_offsets(self, wanted: dict[TopicPartition, OffsetSpec], **options: float) -> dict[TopicPartition, Any]:
        self._clock.now_s += 1
        answers = {}
        for place in wanted:
            answers[place] = Future[SimpleNamespace]()
            offset = 7 if place.partition == 0 else 8
            answers[place].set_result(SimpleNamespace(offset=offset, timestamp=900_000))
        return answers


def test_what_is_not_found_in_time_has_no_append_time() -> None:
    clock = ManualClock(0.0)
    admin = cast(AdminClient, HastyAdmin(clock))
    offsets = KafkaOffsets(admin, lambda group: pytest.fail("no group is asked for"), now=lambda: 10.0**12, clock=clock)
    assert offsets.appended_at_ms({(REQUESTS, 0): 7, (REQUESTS, 1): 7}) == {(REQUESTS, 0): 900_000}


def test_while_the_broker_is_away_the_last_look_stays_and_grows_old() -> None:
    offsets = ScriptedOffsets()
    lag = _group_lag(offsets, Metrics())
    assert (lag.of(GATE_APP), lag.age_s) == (None, float("inf"))
    lag.look()
    offsets.away = True
    offsets.clock.now_s += 7
    lag.look()
    assert lag.age_s == 7
    assert lag.of(GATE_APP) == Lag(records=0, oldest_age_s=0.0, rate_per_s=None)


@given(
    times=st.lists(st.integers(1, 10**9), min_size=1, max_size=50).map(sorted),
    place=st.integers(0, 49),
    first=st.integers(0, 1000),
    ahead_ms=st.integers(-(10**6), 10**9),
)
def test_the_age_of_a_record_is_found_by_asking_for_offsets_at_times(
    times: list[int], place: int, first: int, ahead_ms: int
) -> None:
    place, now_ms = min(place, len(times) - 1), max(times[-1] + ahead_ms, 1)
    search = TimeSearch(first + place, now_ms)
    for _ in range(60):
        if search.found_ms is not None:
            break
        asked_ms = search.ask_ms
        found = next((number for number, at_ms in enumerate(times) if at_ms >= asked_ms), None)
        search.told(*((-1, -1) if found is None else (first + found, times[found])))
    assert search.found_ms is not None, "it goes on for ever"
    age_ms, told_ms = max(now_ms - times[place], 0), max(now_ms - search.found_ms, 0)
    assert 0 <= told_ms - age_ms <= max(10, age_ms / 50)
