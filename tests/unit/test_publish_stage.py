"""The publish stage of a GPU worker: what it does with completions that the broker did not take."""

from __future__ import annotations

import threading
import time

import pytest

from gpu_consumers.jobs import Job, new_job, read_envelope
from gpu_consumers.publish_stage import PublishStage, Refused
from gpu_consumers.watchdog import Watchdog
from runtime.errors import Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from schemas import headers as h
from schemas.codes import Code
from schemas.topics import RESULTS
from tests.accepted import headers_of, request
from tests.in_memory.broker import InMemoryBroker
from tests.unit.worker_case import ACCEPTED, GROUP, Scripted

COUNT = 64


class Pauses(threading.Event):
    """Stands for the stage's stop and clock: a pause takes no time, and the clock is on by it."""

    def __init__(self) -> None:
        super().__init__()
        self.paused_s = 0.0

    def clock(self) -> float:
        return 1000.0 + self.paused_s

    def wait(self, timeout: float | None = None) -> bool:
        self.paused_s += timeout or 0.0
        return self.is_set()


def job_of(number: int, settled: threading.Semaphore, now_s: float) -> Job:
    message = request(f"r-{number}", robot=f"robot-{number}")
    record = Record(ACCEPTED, 0, number, None, message.SerializeToString(), 0, h.encode(headers_of(message)))
    return new_job(read_envelope(record), message, settled.release, received_s=now_s, now_s=time.time())


def test_completions_that_failed_together_share_one_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    broker = InMemoryBroker({RESULTS: 4})
    publisher = broker.publisher()
    publisher.fail_next(RESULTS, *[Unavailable("an outage") for _ in range(COUNT)])
    pauses, settled, failures = Pauses(), threading.Semaphore(0), list[BaseException]()
    stage = PublishStage(
        policy=Scripted(),
        conversions={},
        watchdog=Watchdog(),
        publisher=publisher,
        metrics=Metrics(),
        worker_id="worker-0",
        group=GROUP,
        fail=failures.append,
        clock=pauses.clock,
    )
    monkeypatch.setattr(stage, "_stop", pauses)
    for number in range(COUNT):
        stage.put(Refused(job_of(number, settled, pauses.clock()), Code.EXPIRED, "too late"))
    stage.start()
    try:
        assert all(settled.acquire(timeout=10) for _ in range(COUNT)), failures
    finally:
        stage.close(Deadline(10))
    assert stage.completed_total == COUNT
    assert 0 < pauses.paused_s <= 0.2, f"{pauses.paused_s:.1f} s in which no fresh result went out"
