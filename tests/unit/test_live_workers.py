"""Which workers are live, and that those who are long gone leave nothing behind."""

from __future__ import annotations

from runtime.workers import LiveWorkers
from schemas.messages import WorkerHeartbeat
from tests.unit.api_stand_ins import ManualClock


def beat(workers: LiveWorkers, name: str) -> None:
    workers.update(name.encode(), WorkerHeartbeat(worker_id=name, deployment="d").SerializeToString(), 0)


def test_a_worker_is_live_until_its_heartbeats_stop() -> None:
    clock = ManualClock()
    workers = LiveWorkers(3.5, clock=clock, now=lambda: 0.0)
    beat(workers, "w-1")
    clock.now_s += 3
    assert [worker.worker_id for worker in workers.live("d")] == ["w-1"]
    clock.now_s += 1
    assert workers.live() == []


def test_workers_that_were_started_again_and_again_are_not_all_remembered() -> None:
    clock = ManualClock()
    workers = LiveWorkers(3.5, clock=clock, now=lambda: 0.0)
    for number in range(500):
        clock.now_s += 1
        beat(workers, f"w-{number}")
    assert len(workers._seen) <= 20 * 3.5 + 1  # noqa: SLF001 - what it holds cannot be seen from outside
