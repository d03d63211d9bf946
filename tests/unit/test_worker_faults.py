"""Policies and devices that misbehave: the innocent are served, nobody is refused for a broken device."""

from __future__ import annotations

import threading
import time

import pytest

from gpu_consumers.policies.deterministic import DeterministicPolicy
from gpu_consumers.watchdog import Watchdog
from runtime.errors import Fatal
from schemas.topics import RESULTS, WORKERS
from tests.cards import model
from tests.unit.policy_case import observation
from tests.unit.worker_case import ACCEPTED, GROUP, Running, code_of


class ManualClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_failed_batch_is_halved_until_only_the_culprit_is_alone() -> None:
    run = Running()
    run.start()
    run.queue_up(
        lambda: run.send("a", robot="a", ttl_s=60),
        lambda: run.send("b", robot="b", ttl_s=70),
        lambda: run.send("bad", "push the poison", robot="c", ttl_s=80),
        lambda: run.send("d", robot="d", ttl_s=90),
    )
    done = run.completions(5)
    assert code_of(done["bad"]) == "policy_failed"
    assert [done[name].result.batch_size for name in ("a", "b", "d")] == [2, 2, 1]
    assert run.policy.batches == [["plug"], ["a", "b", "bad", "d"], ["a", "b"], ["bad", "d"], ["bad"], ["d"]]
    assert run.stop() == 0


@pytest.mark.parametrize(("word", "code"), [("misshapen", "policy_failed"), ("double", "policy_failed"), ("nan", "")])
def test_bad_output_of_one_request_leaves_the_rest_of_its_batch_as_it_is(word: str, code: str) -> None:
    run = Running()
    run.start()
    run.queue_up(
        lambda: run.send("good-1", robot="a", ttl_s=60),
        lambda: run.send("bad", f"push the {word}", robot="b", ttl_s=70),
        lambda: run.send("good-2", robot="c", ttl_s=80),
        lambda: run.send("good-3", robot="d", ttl_s=90),
    )
    done = run.completions(5)
    if code:
        assert code_of(done["bad"]) == code
    else:
        assert done["bad"].HasField("result"), "numbers are the action gate's to judge, row by row"
    assert all(done[name].HasField("result") for name in ("good-1", "good-2", "good-3"))
    assert run.policy.batches == [["plug"], ["good-1", "bad", "good-2", "good-3"]]
    assert run.stop() == 0


def test_a_device_that_fails_on_everything_ends_the_process_and_refuses_nobody() -> None:
    run = Running()
    run.start()
    run.send("before")
    assert run.completions(1)["before"].HasField("result")
    assert run.committed(1)
    run.policy.broken = True
    run.send("after")
    assert run.lifecycle.stopping.wait(10)
    run.thread.join()
    assert isinstance(run.lifecycle.failure, Fatal)
    assert "illegal memory access" in str(run.lifecycle.failure)
    assert run.lifecycle.close() == 70
    assert len(run.broker.records(RESULTS)) == 1
    assert run.broker.committed(GROUP, ACCEPTED, 0) == 1, "the request is read again by the next process"


def test_a_policy_that_exits_its_thread_ends_the_process_instead_of_leaving_it_idle() -> None:
    run = Running()
    run.start()
    run.send("bad", "push the exit")
    assert run.lifecycle.stopping.wait(10)
    run.thread.join()
    assert isinstance(run.lifecycle.failure, SystemExit)
    assert run.lifecycle.close() == 70


@pytest.mark.parametrize("word", ["unready", "block", "unfinishing"])
def test_a_hang_in_any_step_is_not_alive_sends_no_heartbeat_and_ends_the_process(word: str) -> None:
    run = Running(policy_timeout_s=0.05)
    run.start()
    assert run.worker.alive()
    run.policy.open.clear()
    run.send("r-1", f"push the {word}")
    assert run.broker.wait_for(lambda: bool(run.hangs))
    assert not run.worker.alive()
    beats = len(run.broker.records(WORKERS))
    first = len(run.hangs)
    # The process would be gone; here it goes on, and keeps silent.
    assert run.broker.wait_for(lambda: len(run.hangs) >= first + 2)
    assert len(run.broker.records(WORKERS)) == beats
    assert run.stop() == 0


def test_what_a_hung_worker_had_in_work_is_refused_as_expired_when_it_comes_back_late() -> None:
    hung = Running(policy_timeout_s=0.05)
    hung.start()
    hung.policy.open.clear()
    hung.send("r-1", "push the block", ttl_s=3.0)
    assert hung.broker.wait_for(lambda: bool(hung.hangs))
    left = hung.broker.records(ACCEPTED)
    assert hung.broker.committed(GROUP, ACCEPTED, 0) is None, "it is still to be read"
    deadline_s = int(left[0].headers["deadline_ms"]) / 1000
    assert hung.broker.wait_for(lambda: time.time() > deadline_s)
    restarted = Running()
    restarted.policy.open.clear()
    restarted.start()
    restarted.send_raw(left[0].value or b"", dict(left[0].headers), left[0].key or b"")
    assert code_of(restarted.completions(1)["r-1"]) == "expired"
    assert restarted.policy.batches == [], "the policy never sees it again, so it cannot hang again"
    assert restarted.stop() == 0
    assert hung.stop() == 0


def test_an_expired_request_is_refused_before_its_images_are_decoded() -> None:
    run = Running()
    run.start()
    run.send("late", "push the unpreparable", ttl_s=-1)
    assert code_of(run.completions(1)["late"]) == "expired"
    assert run.stop() == 0


def test_the_patience_with_a_policy_grows_with_what_its_batches_are_known_to_take() -> None:
    run = Running(policy_timeout_s=2)
    assert run.worker.policy_limit_s == 2
    run.worker._cost.observe(1, 3.0)  # noqa: SLF001 - as if a batch had taken so long
    assert run.worker.policy_limit_s == pytest.approx(30)


def test_a_slow_device_makes_requests_without_a_chance_expire_early() -> None:
    run = Running()
    run.start()
    run.hold_device()
    threading.Timer(0.8, run.policy.open.set).start()
    assert run.completions(1)["plug"].HasField("result")
    # Four slow batches would be needed to believe it; the test says so at once.
    for _ in range(4):
        run.worker._cost.observe(1, 0.8)  # noqa: SLF001 - as if a batch had taken so long
    batches = len(run.policy.batches)
    run.send("hopeless", ttl_s=0.3)
    assert code_of(run.completions(2)["hopeless"]) == "expired"
    assert len(run.policy.batches) == batches
    assert run.stop() == 0


def test_one_customers_robots_do_not_make_another_customer_wait() -> None:
    run = Running()
    run.start()
    sends = [lambda i=i: run.send(f"big-{i}", robot=f"robot-{i}", customer="big") for i in range(12)]
    run.queue_up(*sends, lambda: run.send("small", robot="robot-x", customer="small", ttl_s=90))
    run.completions(14)
    assert "small" in run.policy.batches[1]
    assert run.stop() == 0


# --- the parts


def test_the_watchdog_names_the_step_that_has_been_running_longest() -> None:
    clock = ManualClock()
    dog = Watchdog(clock)
    assert dog.longest() == ("", 0.0)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with dog.watching("prepare"):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert entered.wait(10)
    clock.now_s += 5
    with dog.watching("infer"):
        clock.now_s += 2
        assert dog.longest() == ("prepare", 7.0)
        leave.set()
        thread.join()
        assert dog.longest() == ("infer", 2.0)
    assert dog.longest() == ("", 0.0)


def test_a_step_that_raises_is_over_for_the_watchdog() -> None:
    dog = Watchdog()
    with pytest.raises(RuntimeError), dog.watching("infer"):
        raise RuntimeError("no")
    assert dog.longest() == ("", 0.0)


def test_a_batch_with_a_slow_fault_takes_ten_times_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    naps: list[float] = []
    monkeypatch.setattr(time, "sleep", naps.append)
    config = {"service_time_base_ms": 10, "service_time_per_item_ms": 5, "faults": True}
    policy = DeterministicPolicy(model(policy_config=config))
    texts = ("push it left", "push it fault slow")
    quick, slow = (policy.prepare(observation(policy.card, instruction=text)) for text in texts)
    policy.infer([quick, quick])
    policy.infer([quick, slow])
    assert naps == pytest.approx([0.020, 0.200])
