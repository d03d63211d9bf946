"""The at-least-once loop over the in-memory broker: what is committed, and what is never committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from runtime.errors import Fatal
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.processor import Processor
from tests.in_memory import InMemoryBroker, InMemoryConsumer

TOPIC, GROUP = "in", "workers"


class Holding:
    """A handler that finishes a record when the test says so."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.open: dict[tuple[int, int], Callable[[], None]] = {}
        self.seen: list[tuple[int, int]] = []

    def submit(self, record: Record, done: Callable[[], None]) -> None:
        with self.changed:
            self.open[record.partition, record.offset] = done
            self.seen.append((record.partition, record.offset))
            self.changed.notify_all()

    def wait_seen(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.seen) >= count, 10), f"only {self.seen}"

    def finish(self, partition: int, offset: int) -> None:
        self.open.pop((partition, offset))()

    def finish_all(self) -> None:
        for place in list(self.open):
            self.finish(*place)


class Running:
    """A processor on a thread of its own."""

    def __init__(self, broker: InMemoryBroker, handler: Holding, *, max_in_flight: int = 100) -> None:
        self.consumers: list[InMemoryConsumer] = []

        def build(on_commit: Callable[..., None]) -> InMemoryConsumer:
            self.consumers.append(broker.consumer(GROUP, on_commit))
            return self.consumers[0]

        self.metrics = Metrics()
        self.processor = Processor(
            build=build,
            topics=[TOPIC],
            handler=handler,
            metrics=self.metrics,
            max_in_flight=max_in_flight,
            commit_interval_s=0.01,
            revoke_timeout_s=10.0,
        )
        self.stopping = threading.Event()
        self.failure: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.processor.run(self.stopping)
        except Fatal as error:
            self.failure = error

    def stop(self, budget_s: float = 10.0) -> None:
        self.stopping.set()
        self.thread.join()
        self.processor.close(Deadline(budget_s))


@contextmanager
def running(broker: InMemoryBroker, handler: Holding, max_in_flight: int = 100) -> Iterator[Running]:
    run = Running(broker, handler, max_in_flight=max_in_flight)
    try:
        yield run
    finally:
        handler.finish_all()
        if not run.stopping.is_set():
            run.stop()


@pytest.fixture
def broker() -> InMemoryBroker:
    return InMemoryBroker({TOPIC: 2})


def fill(broker: InMemoryBroker, count: int, partition: int = 0) -> None:
    for index in range(count):
        broker.append(TOPIC, b"%d" % index, None, [], partition)


def committed(broker: InMemoryBroker, partition: int = 0) -> int | None:
    return broker.committed(GROUP, TOPIC, partition)


def test_the_commit_follows_the_oldest_unfinished_record(broker: InMemoryBroker) -> None:
    fill(broker, 4)
    handler = Holding()
    with running(broker, handler):
        handler.wait_seen(4)
        handler.finish(0, 0)
        assert broker.wait_for(lambda: committed(broker) == 1)
        handler.finish(0, 2)
        handler.finish(0, 1)
        assert broker.wait_for(lambda: committed(broker) == 3)
        handler.finish(0, 3)
        assert broker.wait_for(lambda: committed(broker) == 4)


def test_a_record_done_twice_counts_once(broker: InMemoryBroker) -> None:
    fill(broker, 2)
    handler = Holding()
    with running(broker, handler) as run:
        handler.wait_seen(2)
        done = handler.open[0, 0]
        done()
        done()
        assert run.processor.in_flight == 1


def test_a_failed_commit_is_tried_again(broker: InMemoryBroker) -> None:
    fill(broker, 1)
    broker.failing_commits = 3
    handler = Holding()
    with running(broker, handler) as run:
        handler.wait_seen(1)
        handler.finish(0, 0)
        assert broker.wait_for(lambda: committed(broker) == 1)
        labels = {"stage": "commit", "reason": "REQUEST_TIMED_OUT"}
        assert run.metrics.registry.get_sample_value("vla_retries_total", labels) == 3


def test_intake_pauses_at_the_limit_and_goes_on_at_half_of_it(broker: InMemoryBroker) -> None:
    fill(broker, 10)
    handler = Holding()
    with running(broker, handler, max_in_flight=4) as run:
        handler.wait_seen(4)
        handler.finish(0, 0)
        # Still above half: the loop comes round (its commit shows it) without taking in more.
        assert broker.wait_for(lambda: committed(broker) == 1)
        assert run.processor.in_flight == 3
        assert len(handler.seen) == 4
        handler.finish(0, 1)
        handler.wait_seen(6)
        assert run.processor.in_flight <= 4
        while len(handler.seen) < 10:
            handler.finish_all()
            handler.wait_seen(min(len(handler.seen) + 1, 10))
        assert [offset for _, offset in handler.seen] == list(range(10))


def test_a_revoked_partition_is_finished_and_committed_before_it_changes_hands(broker: InMemoryBroker) -> None:
    fill(broker, 3, partition=0)
    fill(broker, 3, partition=1)
    first, second = Holding(), Holding()
    with running(broker, first) as one:
        first.wait_seen(6)
        with running(broker, second) as two:
            counted = one.metrics.registry.get_sample_value
            assert broker.wait_for(lambda: counted("vla_rebalances_total", {"kind": "revoked"}) == 1)
            assert broker.wait_for(lambda: two.processor.joined)
            assert second.seen == []
            first.finish_all()
            assert broker.wait_for(lambda: len(two.consumers[0].owned) == 1)
            for partition in (0, 1):
                broker.append(TOPIC, b"after", None, [], partition)
            first.wait_seen(7)
            second.wait_seen(1)
            assert first.seen[6][1] == second.seen[0][1] == 3
            assert {first.seen[6][0], second.seen[0][0]} == {0, 1}


def test_done_of_an_earlier_assignment_is_ignored(broker: InMemoryBroker) -> None:
    fill(broker, 2)
    handler = Holding()
    with running(broker, handler) as run:
        handler.wait_seen(2)
        earlier = dict(handler.open)
        broker.evict(run.consumers[0])
        handler.wait_seen(4)
        for done in earlier.values():
            done()
        assert run.processor.in_flight == 2
        handler.finish(0, 0)
        assert broker.wait_for(lambda: committed(broker) == 1)
        assert committed(broker) == 1


def test_nothing_of_a_lost_partition_is_committed(broker: InMemoryBroker) -> None:
    fill(broker, 2)
    handler = Holding()
    with running(broker, handler) as run:
        handler.wait_seen(2)
        broker.evict(run.consumers[0])
        handler.wait_seen(4)
        assert committed(broker) is None


def test_a_stop_drains_and_commits_what_is_in_flight(broker: InMemoryBroker) -> None:
    fill(broker, 3)
    handler = Holding()
    with running(broker, handler) as run:
        handler.wait_seen(3)
        stopper = threading.Thread(target=run.stop)
        stopper.start()
        assert run.stopping.wait(10)
        run.thread.join()
        broker.append(TOPIC, b"after the stop", None, [], 0)
        handler.finish_all()
        stopper.join()
    assert committed(broker) == 3
    assert len(handler.seen) == 3


def test_a_stop_that_runs_out_of_time_commits_only_what_is_done(broker: InMemoryBroker) -> None:
    fill(broker, 3)
    handler = Holding()
    with running(broker, handler) as run:
        handler.wait_seen(3)
        handler.finish(0, 0)
        run.stop(budget_s=0.05)
        assert committed(broker) == 1
        assert run.processor.in_flight == 2


def test_a_stop_before_the_first_poll_is_not_lost(broker: InMemoryBroker) -> None:
    fill(broker, 1)
    handler = Holding()
    processor = Processor(
        build=lambda on_commit: broker.consumer(GROUP, on_commit),
        topics=[TOPIC],
        handler=handler,
        metrics=Metrics(),
        max_in_flight=1,
    )
    stopping = threading.Event()
    stopping.set()
    processor.run(stopping)
    processor.close(Deadline(1))
    assert handler.seen == []
    assert committed(broker) is None


def test_an_exception_out_of_submit_is_fatal_and_its_record_is_not_committed(broker: InMemoryBroker) -> None:
    fill(broker, 2)

    class Failing(Holding):
        def submit(self, record: Record, done: Callable[[], None]) -> None:
            if record.offset == 1:
                raise ValueError("no decision for this")
            done()

    run = Running(broker, Failing())
    run.thread.join(10)
    assert isinstance(run.failure, Fatal)
    assert "in/0/1" in str(run.failure)
    run.processor.close(Deadline(10))
    assert committed(broker) == 1
