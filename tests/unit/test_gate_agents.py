"""Both agents of the gate over the in-memory broker: one outcome for each request, whatever arrives in what order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runtime.dead_letters import REASON
from runtime.errors import Unavailable
from schemas import headers as h
from schemas.codes import Code
from schemas.messages import Completion, Control, InferenceRequest, InferenceResult, Options, SafetyMode
from schemas.topics import OUTCOMES, REPLIES, REQUESTS, RESULTS
from tests.gate_bench import ACCEPTED, FLEET_TOPIC, JPEG, GateBench, answered, request


async def test_a_good_request_ends_in_one_outcome_and_one_reply() -> None:
    bench = GateBench()
    await answered(bench, request())
    (outcome,), (answer,) = bench.outcomes(), bench.answers()
    assert outcome.chunk.safety.score == 1.0
    assert outcome.chunk.names == ["dx", "dy", "gripper"]
    assert answer.outcome == outcome
    assert answer.headers[h.CORRELATION_ID] == "c1"
    assert (answer.headers[h.REPLAYED], answer.headers[h.EXPIRED]) == ("false", "false")


async def test_the_request_is_forwarded_byte_for_byte_under_headers_of_our_own() -> None:
    bench = GateBench()
    asked = request()
    bench.ask(asked, consent_tier="full", deadline_ms="1", source="x/0/0", traceparent="00-1-2-01")
    await bench.step()
    (record,) = bench.broker.records(ACCEPTED)
    assert record.value == asked.SerializeToString()
    assert record.headers[h.CONSENT_TIER] == "none"
    assert record.headers[h.SOURCE] == f"{REQUESTS}/0/0"
    assert int(record.headers[h.DEADLINE_MS]) > 1
    assert record.headers[h.TRACEPARENT] == "00-1-2-01"
    assert h.REPLY_TOPIC not in record.headers


async def test_forged_headers_on_a_fleet_topic_are_replaced() -> None:
    bench = GateBench()
    await answered(bench, request(), topic=FLEET_TOPIC, correlation_id="mine")
    assert bench.outcomes()[0].request.customer_id == "north"
    assert bench.answers(REPLIES) == []
    (answer,) = bench.answers("vla.replies.north.v1")
    assert answer.headers[h.CORRELATION_ID] == "mine"


async def test_a_refusal_is_an_outcome_with_every_violation() -> None:
    bench = GateBench()
    bench.ask(request(robot_type="UNKNOWN", instruction="go"))
    await bench.step()
    (outcome,) = bench.outcomes()
    assert outcome.rejection.status == 422
    assert {v.field for v in outcome.rejection.violations} == {"robot_type", "instruction"}
    assert bench.answers()[0].outcome == outcome
    assert bench.broker.records(ACCEPTED) == []


async def test_a_retry_after_the_outcome_gets_the_first_answer_marked_replayed() -> None:
    bench = GateBench()
    asked = request()
    await answered(bench, asked, correlation_id="first")
    await answered(bench, asked, correlation_id="second")
    assert len(bench.outcomes()) == 1
    first, second = bench.answers()
    assert first.outcome == second.outcome
    assert (second.headers[h.CORRELATION_ID], second.headers[h.REPLAYED]) == ("second", "true")


async def test_a_retry_of_an_expired_request_says_so() -> None:
    bench = GateBench()
    asked = request(ttl_ms=200)
    await answered(bench, asked)
    answers = 0
    while bench.answers()[-1].headers[h.EXPIRED] != "true":
        await answered(bench, asked, correlation_id=f"again-{answers}")
        answers += 1
    assert len(bench.outcomes()) == 1
    assert bench.answers()[-1].outcome == bench.outcomes()[0]


async def test_a_retry_before_the_outcome_waits_for_it() -> None:
    bench = GateBench()
    asked = request()
    bench.ask(asked, correlation_id="first")
    bench.ask(asked, correlation_id="second")
    await bench.step()
    assert len(bench.broker.records(ACCEPTED)) == 1
    bench.infer()
    await bench.step()
    assert len(bench.outcomes()) == 1
    assert [(a.headers[h.CORRELATION_ID], a.headers[h.REPLAYED]) for a in bench.answers()] == [
        ("first", "false"),
        ("second", "true"),
    ]


async def test_a_retry_that_arrives_while_the_outcome_is_published_is_not_left_out() -> None:
    bench = GateBench()
    asked = request()
    bench.ask(asked, correlation_id="first")
    await bench.step(REQUESTS)
    bench.infer()
    send_all, calls = bench.actions._delivery.send_all, 0  # noqa: SLF001 - the moment between publish and decide

    async def interrupted(outgoing: Any) -> Any:
        nonlocal calls
        calls += 1
        delivered = await send_all(outgoing)
        if calls == 1:
            bench.ask(asked, correlation_id="second")
            await bench.step(REQUESTS)
        return delivered

    bench.actions._delivery.send_all = interrupted  # type: ignore[method-assign] # noqa: SLF001 - the same moment
    await bench.step(RESULTS)
    assert {a.headers[h.CORRELATION_ID] for a in bench.answers()} == {"first", "second"}


async def test_the_same_id_with_other_content_is_refused_and_the_first_answer_stands() -> None:
    bench = GateBench()
    asked = request()
    await answered(bench, asked)
    other = InferenceRequest.FromString(asked.SerializeToString())
    other.step = 9
    await answered(bench, other)
    first, second = bench.outcomes()
    assert second.rejection.code == Code.REQUEST_ID_REUSED
    assert first.row_id != second.row_id
    await answered(bench, asked, correlation_id="third")
    assert bench.answers()[-1].outcome == first


async def test_the_same_content_under_another_id_is_a_duplicate() -> None:
    bench = GateBench()
    await answered(bench, request())
    await answered(bench, request())
    assert [outcome.rejection.code for outcome in bench.outcomes()] == ["", Code.DUPLICATE]


async def test_a_faulty_request_sent_twice_hears_of_its_fault_twice() -> None:
    bench = GateBench()
    await answered(bench, request(robot_type="UNKNOWN"))
    await answered(bench, request(robot_type="UNKNOWN"))
    assert [outcome.rejection.code for outcome in bench.outcomes()] == [Code.INVALID_ROBOT_TYPE] * 2


@pytest.mark.parametrize("topic", [REQUESTS, RESULTS])
async def test_redelivery_after_the_outcome_changes_nothing(topic: str) -> None:
    bench = GateBench()
    await answered(bench, request())
    bench.start()
    await bench.redeliver(topic)
    assert len(bench.outcomes()) == 1
    assert len(bench.answers()) == 1


async def test_a_crash_between_recording_and_forwarding_is_forwarded_after_the_restart() -> None:
    bench = GateBench()
    bench.ask(request())
    await bench.step(REQUESTS)
    bench.start()
    await bench.redeliver(REQUESTS)
    assert len(bench.broker.records(ACCEPTED)) == 2
    bench.infer()
    await bench.step(RESULTS)
    assert len(bench.outcomes()) == 1
    assert len(bench.answers()) == 1


async def test_a_crash_before_the_table_kept_the_outcome_repeats_the_same_outcome() -> None:
    bench = GateBench()
    bench.ask(request())
    await bench.step(REQUESTS)
    kept = dict(bench.store)
    bench.infer()
    await bench.step(RESULTS)
    bench.store.clear()
    bench.store.update(kept)
    bench.start()
    await bench.redeliver(RESULTS)
    first, again = bench.outcomes()
    assert again.row_id == first.row_id
    assert again.results_offset == first.results_offset
    assert again.chunk == first.chunk


async def test_a_request_whose_row_was_lost_on_the_way_gets_its_outcome_all_the_same() -> None:
    bench = GateBench()
    asked = request()
    bench.ask(asked)
    await bench.step(REQUESTS)
    bench.infer()
    bench.store.clear()
    bench.start()
    await bench.step(RESULTS)
    (outcome,) = bench.outcomes()
    assert outcome.request.request_id == asked.request_id
    await bench.redeliver(REQUESTS)
    await bench.redeliver(RESULTS)
    assert len(bench.outcomes()) == 1
    assert bench.answers()[-1].outcome == outcome


async def test_a_completion_that_nobody_asked_for_is_dropped_and_counted() -> None:
    bench = GateBench()
    completion = Completion(row_id="nobody's", result=InferenceResult())
    bench.put(completion.SerializeToString(), {}, RESULTS)
    await bench.step()
    assert bench.outcomes() == []
    assert bench.metrics.registry.get_sample_value("vla_completions_dropped_total", {"reason": "unknown"}) == 1


@pytest.mark.parametrize("value", [b"", b"\xff\xff\xff\xff", b"plain text", JPEG])
async def test_random_bytes_become_one_dead_letter_and_the_next_request_is_served(value: bytes) -> None:
    bench = GateBench()
    bench.put(value, {h.CUSTOMER_ID: "customer"})
    await answered(bench, request())
    (letter,) = bench.broker.records(f"{REQUESTS}.dlq")
    assert letter.value == value
    assert letter.headers[REASON] == "undecodable"
    assert len(bench.outcomes()) == 1


async def test_random_bytes_with_readable_headers_are_answered_too() -> None:
    bench = GateBench()
    bench.put(
        b"\xff",
        {
            h.CUSTOMER_ID: "customer",
            h.REQUEST_ID: "q",
            h.CORRELATION_ID: "c",
            h.REPLY_TOPIC: REPLIES,
            h.REPLY_PARTITION: 1,
        },
    )
    await bench.step()
    (answer,) = bench.answers()
    assert (answer.outcome.rejection.code, answer.outcome.rejection.status) == (Code.UNDECODABLE, 400)
    assert bench.outcomes() == []


async def test_a_record_without_a_customer_on_the_api_topic_is_a_dead_letter() -> None:
    bench = GateBench()
    bench.put(request().SerializeToString(), {})
    await bench.step()
    (letter,) = bench.broker.records(f"{REQUESTS}.dlq")
    assert letter.headers[REASON] == "missing_headers"


@pytest.mark.parametrize("value", [b"\xff\xff", b"", Completion(row_id="x").SerializeToString()])
async def test_poison_on_the_results_topic_is_a_dead_letter(value: bytes) -> None:
    bench = GateBench()
    bench.put(value, {}, RESULTS)
    await bench.step()
    assert len(bench.broker.records(f"{RESULTS}.dlq")) == 1


@pytest.mark.parametrize("forged", ["vla.requests.v1", "vla.replies.south.v1", ""])
async def test_an_answer_goes_to_no_topic_but_a_reply_topic(forged: str) -> None:
    bench = GateBench()
    await answered(bench, request(), **{h.REPLY_TOPIC: forged})
    assert len(bench.outcomes()) == 1
    assert bench.answers() == []


async def test_an_unsafe_chunk_is_refused_with_its_report() -> None:
    bench = GateBench()
    bench.ask(request())
    await bench.step(REQUESTS)
    bench.infer(np.full((4, 3), [0.5, 0.0, 0.0], np.float32))
    await bench.step(RESULTS)
    (outcome,) = bench.outcomes()
    assert outcome.rejection.code == Code.UNSAFE_ACTION
    assert outcome.rejection.safety.checks["range"] < 0.7
    assert outcome.rejection.violations[0].field == "actions[0].dx"


async def test_a_chunk_that_is_not_finite_is_refused_even_where_it_is_only_monitored() -> None:
    bench = GateBench()
    bench.ask(request(options=Options(safety_mode=SafetyMode.SAFETY_MODE_MONITOR)))
    await bench.step(REQUESTS)
    bench.infer(np.full((4, 3), np.nan, np.float32))
    await bench.step(RESULTS)
    assert bench.outcomes()[0].rejection.code == Code.UNSAFE_ACTION


async def test_clamp_delivers_the_safe_chunk_and_keeps_the_original() -> None:
    bench = GateBench()
    bench.ask(request(options=Options(safety_mode=SafetyMode.SAFETY_MODE_CLAMP)))
    await bench.step(REQUESTS)
    bench.infer(np.full((4, 3), [0.09, 0.0, 0.0], np.float32))
    await bench.step(RESULTS)
    chunk = bench.outcomes()[0].chunk
    assert chunk.safety.modified
    assert chunk.actions.values[0] == pytest.approx(0.08)
    assert chunk.result.chunk.values[0] == pytest.approx(0.09)


async def test_continuity_is_held_within_an_episode_and_forgotten_at_the_next() -> None:
    bench = GateBench()
    for step, (episode, dx, dy) in enumerate([("e1", -0.08, 0.08), ("e1", 0.08, 0.0), ("e2", 0.08, 0.0)]):
        bench.ask(request(episode_id=episode, step=step))
        await bench.step(REQUESTS)
        bench.infer(np.full((4, 3), [dx, dy, 0.0], np.float32))
        await bench.step(RESULTS)
    assert [outcome.rejection.code for outcome in bench.outcomes()] == ["", Code.UNSAFE_ACTION, ""]


async def test_no_action_reaches_a_robot_that_was_stopped_meanwhile() -> None:
    bench = GateBench()
    bench.ask(request())
    await bench.step(REQUESTS)
    bench.infer()
    bench.stop = Control(target="all", stopped=True)
    await bench.step(RESULTS)
    assert bench.outcomes()[0].rejection.code == Code.STOPPED


async def test_no_live_worker_is_told_at_once() -> None:
    bench = GateBench()
    bench.live = False
    bench.ask(request())
    await bench.step()
    assert bench.outcomes()[0].rejection.code == Code.NO_WORKER
    assert bench.outcomes()[0].rejection.retry_after_s > 0


async def test_a_broker_that_refuses_for_a_while_costs_time_and_nothing_else() -> None:
    bench = GateBench()
    bench.publisher.fail_next(ACCEPTED, Unavailable("away"))
    bench.publisher.fail_next(OUTCOMES, Unavailable("away"))
    await answered(bench, request())
    assert len(bench.outcomes()) == 1
    assert len(bench.answers()) == 1
