"""A recovery that goes nowhere ends the gate; a slow one, or none, does not."""

from __future__ import annotations

from pathlib import Path

from runtime.settings import Settings
from stream_agents.app import build_app
from stream_agents.stall import StallGuard, recovery_of
from tests.unit.api_case import ManualClock


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
