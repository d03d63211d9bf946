"""A recovery that goes nowhere ends the gate; a slow one, or none, does not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from runtime.settings import Settings
from stream_agents.app import build_app
from stream_agents.stall import StallGuard, recovery_of
from stream_agents.takeover import seek_changelogs_back_too
from tests.unit.api_stand_ins import ManualClock


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
    """A consumer that says where it was sought to."""

    def __init__(self) -> None:
        self.sought: list[Any] = []

    async def perform_seek(self) -> None:
        self.sought.append("streams")

    async def seek_wait(self, places: dict[str, int]) -> None:
        self.sought.append(places)


def seeking(in_recovery: bool) -> tuple[Any, SoughtConsumer]:
    consumer = SoughtConsumer()
    recovery = SimpleNamespace(active_offsets={"read": 7, "begun": -1, "unknown": None})
    app = SimpleNamespace(consumer=consumer, in_recovery=in_recovery, tables=SimpleNamespace(recovery=recovery))
    seek_changelogs_back_too(app)
    return app, consumer


async def test_changelog_records_that_were_dropped_during_a_recovery_are_read_again() -> None:
    app, consumer = seeking(in_recovery=True)
    await app.consumer.perform_seek()
    assert consumer.sought == ["streams", {"read": 7, "begun": 0}]


async def test_outside_of_a_recovery_changelogs_stay_where_they_are() -> None:
    app, consumer = seeking(in_recovery=False)
    await app.consumer.perform_seek()
    assert consumer.sought == ["streams"]
