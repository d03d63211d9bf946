"""What is behind is counted from the broker's figures, whether or not anybody consumes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from runtime.group_lag import GroupLag, Lag, TimeSearch, behind, watched_groups
from runtime.metrics import Metrics
from schemas.topics import EMBEDDER_GROUP, GATE_APP, PARQUET_GROUP, POSTGRES_GROUP, REQUESTS, RESULTS
from tests.cards import cards
from tests.unit.api_case import ScriptedOffsets


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
