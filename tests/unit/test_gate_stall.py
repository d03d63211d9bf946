"""A recovery that goes nowhere ends the gate; a slow one, or none, does not."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from faust.types import TP

from runtime.settings import Settings
from stream_agents.app import build_app
from stream_agents.stall import StallGuard, TailGuard, recovery_of
from stream_agents.takeover import seek_uncommitted_too
from tests.unit.api_stand_ins import ManualClock

OLD, NEW, CHANGELOG = TP("requests", 0), TP("requests", 1), TP("changelog", 0)


def guard(clock: ManualClock) -> StallGuard:
    return StallGuard(limit_s=20.0, clock=clock)


def test_a_recovery_without_progress_is_stalled_after_the_limit() -> None:
    clock = ManualClock()
    watch = guard(clock)
    assert not watch.stalled(True, (1, 10))
    clock.now_s += 19.0
    assert not watch.stalled(True, (1, 10))
    clock.now_s += 1.0
    assert watch.stalled(True, (1, 10))


def test_a_recovery_that_reads_on_is_never_stalled() -> None:
    clock = ManualClock()
    watch = guard(clock)
    for offset in range(100):
        assert not watch.stalled(True, (1, offset))
        clock.now_s += 19.0


def test_another_assignment_begins_the_wait_again() -> None:
    clock = ManualClock()
    watch = guard(clock)
    assert not watch.stalled(True, (1, 10))
    clock.now_s += 19.0
    assert not watch.stalled(True, (2, 10))
    clock.now_s += 19.0
    assert not watch.stalled(True, (2, 10))


def test_a_gate_that_recovers_nothing_may_be_idle_for_ever() -> None:
    clock = ManualClock()
    watch = guard(clock)
    assert not watch.stalled(False, (1, 10))
    clock.now_s += 1e6
    assert not watch.stalled(False, (1, 10))
    assert not watch.stalled(True, (1, 10))


async def test_what_is_asked_of_faust_is_there(tmp_path: Path) -> None:
    recovering, _ = recovery_of(build_app(Settings(_env_file=None), tmp_path))
    assert not recovering


class SoughtConsumer:
    """A consumer that says where it was sought to. Two partitions of requests: one was committed, one may be new."""

    def __init__(self, committed: dict[TP, int]) -> None:
        self.sought: list[Any] = []
        self._committed = committed
        self._read_offset: defaultdict[TP, int | None] = defaultdict(lambda: None)

    def assignment(self) -> set[TP]:
        return {OLD, NEW, CHANGELOG}

    async def perform_seek(self) -> None:
        self.sought.append("committed")
        self._read_offset.update(self._committed)

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        return dict.fromkeys(partitions, 1)

    async def seek_wait(self, places: dict[TP, int]) -> None:
        self.sought.append(places)


def seeking(*, in_recovery: bool, committed: dict[TP, int]) -> tuple[Any, SoughtConsumer]:
    consumer = SoughtConsumer(committed)
    recovery = SimpleNamespace(active_offsets={"read": 7, "begun": -1, "unknown": None})
    tables = SimpleNamespace(recovery=recovery, changelog_topics={CHANGELOG.topic})
    app = SimpleNamespace(consumer=consumer, in_recovery=in_recovery, tables=tables)
    seek_uncommitted_too(app)
    return app, consumer


async def test_changelog_records_that_were_dropped_during_a_recovery_are_read_again() -> None:
    app, consumer = seeking(in_recovery=True, committed={OLD: 3})
    await app.consumer.perform_seek()
    assert consumer.sought == ["committed", {NEW: 1}, {"read": 7, "begun": 0}]


async def test_a_partition_that_nobody_has_committed_is_read_from_its_beginning_again() -> None:
    app, consumer = seeking(in_recovery=False, committed={OLD: 3})
    await app.consumer.perform_seek()
    assert consumer.sought == ["committed", {NEW: 1}]


async def test_partitions_that_were_committed_are_left_to_faust() -> None:
    app, consumer = seeking(in_recovery=False, committed={OLD: 3, NEW: 5})
    await app.consumer.perform_seek()
    assert consumer.sought == ["committed"]


def tail_guard(clock: ManualClock) -> TailGuard[str]:
    return TailGuard(limit_s=2.0, clock=clock)


def test_offsets_that_stay_unread_while_no_agent_is_held_up_were_dropped() -> None:
    clock = ManualClock()
    tails = tail_guard(clock)
    assert tails.dropped({"a": range(5, 9), "b": range(7, 7)}) == {}
    clock.now_s += 2.0
    assert tails.dropped({"a": range(5, 9), "b": range(7, 8)}) == {"a": 5}


def test_what_is_read_on_or_has_grown_was_not_dropped() -> None:
    clock = ManualClock()
    tails = tail_guard(clock)
    for offset in range(5, 50):
        assert tails.dropped({"a": range(offset, 90), "b": range(1, 50 + offset)}) == {}
        clock.now_s += 1.9


def test_time_in_which_an_agent_was_held_up_does_not_count() -> None:
    clock = ManualClock()
    tails = tail_guard(clock)
    tails.dropped({"a": range(5, 9)})
    clock.now_s += 60
    tails.dropped({})
    assert tails.dropped({"a": range(5, 9)}) == {}


def test_offsets_that_hold_no_record_are_sought_less_and_less_often() -> None:
    clock = ManualClock()
    tails = tail_guard(clock)
    sought_at_s = []
    for second in range(200):
        if tails.dropped({"a": range(5, 6)}):
            sought_at_s.append(second)
        clock.now_s += 1.0
    assert sought_at_s == [2, 10, 42, 170]
    # More of them, and then records: both are other offsets.
    tails.dropped({"a": range(5, 8)})
    clock.now_s += 2.0
    assert tails.dropped({"a": range(5, 8)}) == {"a": 5}


def test_a_partition_without_unread_offsets_has_nothing_dropped() -> None:
    clock = ManualClock()
    tails = tail_guard(clock)
    for _ in range(5):
        assert tails.dropped({"a": range(9, 9), "b": range(9, 0)}) == {}
        clock.now_s += 2.0
