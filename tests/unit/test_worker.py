"""The GPU worker over the in-memory broker: each request gets one completion, and commits wait for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gpu_consumers.jobs import new_job, observe, read_envelope
from gpu_consumers.policies.contract import Observation
from runtime.errors import Fatal, Unavailable
from schemas import headers as h
from schemas.ids import default_seed, result_id
from schemas.messages import Image, ImageEncoding, WorkerHeartbeat
from schemas.topics import RESULTS, WORKERS, dead_letter_topic
from tests.accepted import headers_of, request
from tests.unit.worker_case import ACCEPTED, CARD, GROUP, Running, code_of


def drops(run: Running, stage: str) -> float | None:
    """Requests that a stage dropped after their deadline."""
    return run.metrics.registry.get_sample_value("vla_deadline_drops_total", {"stage": stage})


@pytest.fixture
def running() -> Iterator[Running]:
    run = Running()
    run.start()
    yield run
    if not run.lifecycle.stopping.is_set():
        assert run.stop() == 0


def test_a_request_becomes_a_result_where_its_source_lies(running: Running) -> None:
    running.send("r-1", partition=3)
    completion = running.completions(1)["r-1"]
    record = running.broker.records(RESULTS)[0]
    assert (record.partition, record.key) == (3, b"robot-1")
    sent, got = running.broker.records(ACCEPTED)[0].headers, record.headers
    assert {name: got[name] for name in sent} == sent
    assert (got["ce_specversion"], got["ce_id"], got["content-type"]) == (
        "1.0",
        completion.row_id,
        "application/protobuf",
    )
    assert completion.row_id == sent[h.ROW_ID]
    result, times = completion.result, completion.times
    assert result.result_id == result_id(completion.row_id, CARD.deployment)
    assert (result.chunk.horizon, result.chunk.dim, list(result.chunk.values)) == (4, 3, [0.5] * 12)
    assert (result.model_revision, result.batch_size) == ("0123456789abcdef", 1)
    assert result.seed == default_seed("r-1")
    summary = completion.request
    assert (summary.images[0].width, summary.images[0].height) == (96, 72)
    assert (summary.customer_id, summary.consent_tier, summary.source.partition) == ("c-1", "full", 3)
    stamps = [times.worker_received_us, times.infer_start_us, times.infer_end_us, times.worker_published_us]
    assert stamps == sorted(stamps)
    assert times.gate_end_us - times.gate_start_us == 500
    assert running.committed(1)


def test_headers_that_the_gate_does_not_write_are_not_carried(running: Running) -> None:
    message = request("r-1")
    running.send_raw(message.SerializeToString(), {**headers_of(message), "x-forged": "1"})
    running.completions(1)
    assert "x-forged" not in running.broker.records(RESULTS)[0].headers


def test_an_optional_camera_is_decoded_and_one_that_the_card_does_not_know_is_not() -> None:
    message = request("r-1")
    (base,) = message.images
    message.images.extend(
        [Image(camera=camera, encoding=base.encoding, data=base.data) for camera in ("wrist", "door")]
    )
    record: Any = SimpleNamespace(headers={name: str(value) for name, value in headers_of(message).items()})
    job = new_job(read_envelope(record), message, lambda: None, received_s=0, now_s=0)
    seen = observe(job, CARD.model_copy(update={"optional_cameras": ("wrist", "side")}))
    assert set(seen.images) == {"base", "wrist"}


def test_a_seed_that_the_robot_names_is_used(running: Running) -> None:
    running.send("r-1", seed=0)
    assert running.completions(1)["r-1"].result.seed == 0


def test_requests_that_wait_together_ride_together(running: Running) -> None:
    running.queue_up(*[lambda i=i: running.send(f"r-{i}", robot=f"robot-{i}") for i in range(4)])
    done = running.completions(5)
    assert [done[f"r-{i}"].result.batch_size for i in range(4)] == [4] * 4


@pytest.mark.parametrize("word", ["poison", "unfinishable"])
def test_a_failing_request_takes_none_of_its_batch_along(running: Running, word: str) -> None:
    running.queue_up(
        lambda: running.send("good-1", robot="a"),
        lambda: running.send("bad", f"push the {word}", robot="b"),
        lambda: running.send("good-2", robot="c"),
        lambda: running.send("good-3", robot="d"),
    )
    done = running.completions(5)
    assert code_of(done["bad"]) == "policy_failed"
    assert all(done[name].HasField("result") for name in ("plug", "good-1", "good-2", "good-3"))
    assert running.committed(5)


def test_a_policy_that_refuses_one_request_says_why(running: Running) -> None:
    running.queue_up(
        lambda: running.send("bad", "push the refused", robot="a"), lambda: running.send("good", robot="b")
    )
    done = running.completions(3)
    assert code_of(done["bad"]) == "policy_refused"
    assert done["bad"].rejection.violations[0].detail == "not with this gripper"
    assert done["good"].HasField("result")


@pytest.mark.parametrize(
    ("word", "code"),
    [
        ("unpreparable", "policy_failed"),
        ("unwanted", "policy_refused"),
        ("misshapen", "policy_failed"),
        ("double", "policy_failed"),
    ],
)
def test_what_a_policy_cannot_do_is_refused_and_the_next_request_goes_on(
    running: Running, word: str, code: str
) -> None:
    running.send("bad", f"push the {word}")
    running.send("good")
    done = running.completions(2)
    assert code_of(done["bad"]) == code
    assert done["good"].HasField("result")


def test_a_chunk_that_is_not_a_number_goes_on_to_the_action_gate(running: Running) -> None:
    running.send("r-1", "push the nan")
    assert np.isnan(running.completions(1)["r-1"].result.chunk.values[0])


def test_an_expired_request_never_reaches_the_device(running: Running) -> None:
    running.send("late", ttl_s=-1)
    running.send("good")
    done = running.completions(2)
    assert code_of(done["late"]) == "expired"
    assert running.policy.batches == [["good"]]
    assert drops(running, "gpu_fetch") == 1


def test_a_result_that_comes_after_its_deadline_is_not_published(running: Running) -> None:
    running.policy.open.clear()
    running.send("r-1", ttl_s=2.0)
    assert running.policy.busy.wait(10)
    # The device comes back only after the deadline.
    threading.Timer(2.2, running.policy.open.set).start()
    assert code_of(running.completions(1)["r-1"]) == "expired"
    assert drops(running, "gpu_publish") == 1


def test_a_newer_observation_supersedes_the_waiting_one_of_the_same_robot_and_customer(running: Running) -> None:
    running.hold_device()
    running.send("old", robot="a", latest_only=True)
    running.send("other-robot", robot="b", latest_only=True)
    running.send("other-customer", robot="a", latest_only=True, customer="c-2")
    assert running.broker.wait_for(lambda: running.worker.queue_depth == 3)
    running.send("new", robot="a", latest_only=True)
    assert code_of(running.completions(1)["old"]) == "superseded"
    running.policy.open.set()
    done = running.completions(5)
    assert all(done[name].HasField("result") for name in ("plug", "other-robot", "other-customer", "new"))
    assert running.committed(5)


def test_the_batch_shrinks_after_the_device_ran_out_of_memory(running: Running) -> None:
    running.queue_up(*[lambda i=i: running.send(f"r-{i}", "push the large", robot=f"{i}") for i in range(4)])
    done = running.completions(5)
    assert all(done[f"r-{i}"].HasField("result") for i in range(4))
    assert [len(batch) for batch in running.policy.batches] == [1, 4, 2, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("missing", [h.SOURCE, h.DEADLINE_MS, h.ROW_ID, h.CUSTOMER_ID, h.REQUEST_ID])
def test_a_record_that_the_gate_did_not_write_is_a_dead_letter(running: Running, missing: str) -> None:
    message = request("r-1")
    headers = headers_of(message)
    del headers[missing]
    running.send_raw(message.SerializeToString(), headers)
    running.send("good")
    assert running.completions(1)["good"].HasField("result")
    assert running.committed(2)
    letters = running.broker.records(dead_letter_topic(ACCEPTED))
    assert [letter.value for letter in letters] == [message.SerializeToString()]
    assert letters[0].headers["__connect.errors.offset"] == "0"


def test_an_unreadable_value_is_a_dead_letter_and_its_robot_still_gets_an_answer(running: Running) -> None:
    running.send_raw(b"\xff\xff\xff", headers_of(request("r-1")))
    completion = running.completions(1)["r-1"]
    assert code_of(completion) == "undecodable"
    assert completion.request.robot_id == "robot-1"
    assert len(running.broker.records(dead_letter_topic(ACCEPTED))) == 1
    assert running.committed(1)


@pytest.mark.parametrize("case", ["truncated", "claim", "short rgb8", "no camera", "state"])
def test_a_request_that_does_not_fit_is_refused(running: Running, case: str) -> None:
    message = request("r-1")
    image = message.images[0]
    match case:
        case "truncated":
            image.data = image.data[:200]
        case "claim":
            image.claim.uri = "s3://bucket/key"
        case "short rgb8":
            image.encoding = ImageEncoding.IMAGE_ENCODING_RGB8
            image.width = image.height = 64
        case "no camera":
            image.camera = "wrist"
        case "state":
            message.state.append(1.0)
    running.send_raw(message.SerializeToString(), headers_of(message))
    code = code_of(running.completions(1)["r-1"])
    assert code == ("embodiment_mismatch" if case in ("no camera", "state") else "invalid_image")


def test_the_commit_never_passes_an_unacknowledged_result(running: Running) -> None:
    running.publisher.hold(RESULTS)
    running.send("r-1")
    running.send("r-2")
    running.completions(2)
    assert running.publisher.held == 2
    assert running.broker.committed(GROUP, ACCEPTED, 0) is None
    running.publisher.release()
    assert running.committed(2)


def test_a_result_that_kafka_did_not_take_is_written_again(running: Running) -> None:
    running.publisher.fail_next(RESULTS, Unavailable("no leader"), Unavailable("no leader"))
    running.send("r-1")
    assert running.completions(1)["r-1"].HasField("result")
    assert running.committed(1)


def test_a_producer_that_is_done_for_stops_the_process_without_a_commit(running: Running) -> None:
    running.publisher.fail_next(RESULTS, Fatal("fenced"))
    running.send("r-1")
    assert running.lifecycle.stopping.wait(10)
    running.thread.join()
    assert isinstance(running.lifecycle.failure, Fatal)
    assert running.broker.committed(GROUP, ACCEPTED, 0) is None
    assert running.lifecycle.close() == 70


def test_a_stop_drains_commits_and_says_goodbye(running: Running) -> None:
    running.hold_device()
    running.send("r-1")
    assert running.broker.wait_for(lambda: running.worker.queue_depth == 1)
    assert running.broker.wait_for(lambda: bool(running.broker.records(WORKERS)))
    running.lifecycle.stop()
    running.thread.join()
    running.policy.open.set()
    assert running.lifecycle.close() == 0
    assert running.completions(2)["r-1"].HasField("result")
    assert running.broker.committed(GROUP, ACCEPTED, 0) == 2
    assert running.broker.records(WORKERS)[-1].value is None


def test_heartbeats_begin_when_the_worker_can_serve_and_say_what_it_costs(running: Running) -> None:
    assert running.broker.wait_for(lambda: bool(running.broker.records(WORKERS)))
    record = running.broker.records(WORKERS)[0]
    beat = WorkerHeartbeat.FromString(record.value or b"")
    assert record.key == beat.worker_id.encode() == running.worker.worker_id.encode()
    assert (beat.deployment, beat.model, beat.device, beat.max_batch) == ("test-model-a", "test-model", "cpu", 4)
    assert beat.cost_per_item_s >= 0
    assert beat.cost_base_s >= 0
    assert beat.gpu_memory_total_bytes == 0


def test_no_heartbeat_before_the_warm_up() -> None:
    run = Running()
    assert run.worker.waiting() == ["the warm-up", "its group", "its heartbeats"]
    assert run.broker.records(WORKERS) == []


def test_a_policy_that_hangs_ends_the_process() -> None:
    run = Running(policy_timeout_s=0.05)
    run.start()
    run.hold_device()
    assert run.broker.wait_for(lambda: bool(run.hangs))
    assert run.stop() == 0


def test_a_policy_that_cannot_run_at_all_is_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Running()

    def broken(batch: Sequence[Observation]) -> list[Observation]:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(run.policy, "infer", broken)
    with pytest.raises(Fatal, match="no kernel image"):
        run.worker.run()


def test_more_requests_than_the_queue_holds_are_all_served() -> None:
    run = Running(worker_queue_max_size=4)
    run.start()
    for index in range(50):
        run.send(f"r-{index}", robot=f"robot-{index % 3}")
    done = run.completions(50)
    assert all(completion.HasField("result") for completion in done.values())
    assert run.committed(50)
    order = [request_id for batch in run.policy.batches for request_id in batch]
    for robot in range(3):
        mine = [int(request_id[2:]) for request_id in order if int(request_id[2:]) % 3 == robot]
        assert mine == sorted(mine)
    assert run.stop() == 0
