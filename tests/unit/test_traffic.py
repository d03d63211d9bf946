"""A new revision is a deployment: robots move to it and back by weights, and nothing is lost on the way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import Fatal, Reject
from runtime.traffic import TrafficTable, publish_traffic, traffic_record
from runtime.traffic_commands import parse_weights
from schemas.codes import Code
from schemas.messages import Traffic
from schemas.topics import REQUESTS, RESULTS, TRAFFIC, accepted_topic, declare
from stream_agents.request_rules import route
from tests.cards import cards, embodiment, model
from tests.gate_bench import GateBench, answered, request
from tests.in_memory import InMemoryBroker

OLD, NEW = "test-model-a", "test-model-b"
PAIR = cards(model(), model(deployment=NEW, traffic=0, default=False))
ROBOTS = [f"robot-{number}" for number in range(200)]


def place(robot_id: str, weights: dict[str, float] | None) -> str:
    card = route("test-model", robot_id, embodiment(), PAIR, weights)
    assert card is not None
    return card.deployment


def test_without_a_record_the_cards_deal() -> None:
    assert {place(robot, None) for robot in ROBOTS} == {OLD}


@given(st.integers(0, 100), st.integers(0, 100))
def test_only_robots_that_must_move_do(before: int, after: int) -> None:
    first = {robot: place(robot, {OLD: 100 - before, NEW: before}) for robot in ROBOTS}
    then = {robot: place(robot, {OLD: 100 - after, NEW: after}) for robot in ROBOTS}
    moved = {robot for robot in ROBOTS if first[robot] != then[robot]}
    assert all(then[robot] == (NEW if after > before else OLD) for robot in moved), "nobody moves against the change"
    assert len(moved) == abs(sum(d == NEW for d in then.values()) - sum(d == NEW for d in first.values()))


def test_a_record_about_deployments_that_are_gone_leaves_it_to_the_cards() -> None:
    assert place("robot-1", {"gone": 1.0}) == OLD


def test_the_newest_record_of_a_model_holds() -> None:
    table = TrafficTable()
    assert table.weights("test-model") is None
    for weights in ({OLD: 1.0, NEW: 1.0}, {NEW: 1.0}):
        record = traffic_record("test-model", weights, PAIR, who="ana", why="roll on")
        table.update(b"test-model", record.SerializeToString(), 0)
    assert table.weights("test-model") == {NEW: 1.0}
    assert table.weights("other") is None
    table.update(b"test-model", None, 0)
    assert table.weights("test-model") is None


@pytest.mark.parametrize(
    ("weights", "field"),
    [
        ({"pi0": 1.0}, "deployment"),
        ({OLD: -1.0}, "weight"),
        ({OLD: float("nan")}, "weight"),
        ({OLD: 0.0, NEW: 0.0}, "weight"),
        ({}, "weight"),
    ],
)
def test_a_split_that_would_leave_robots_without_a_deployment_is_never_made(
    weights: dict[str, float], field: str
) -> None:
    with pytest.raises(Reject) as refused:
        traffic_record("test-model", weights, PAIR, who="ana", why="x")
    assert refused.value.field == field


def test_a_split_that_forgets_a_robot_type_is_refused_by_its_name() -> None:
    types = (embodiment(), embodiment(robot_type="other_arm"))
    both = cards(model(embodiments=("test_arm", "other_arm")), model(deployment=NEW, default=False), embodiments=types)
    with pytest.raises(Reject, match="other_arm"):
        traffic_record("test-model", {NEW: 1.0}, both, who="ana", why="x")


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("x", " "), ("x", "a\x1b[2J"), ("x" * 201, "x")])
def test_a_change_without_who_or_why_is_never_made(who: str, why: str) -> None:
    with pytest.raises(Reject):
        traffic_record("test-model", {OLD: 1.0}, PAIR, who=who, why=why)


async def test_the_record_lies_under_its_model_and_says_who_and_why() -> None:
    broker = InMemoryBroker({TRAFFIC: 1})
    record = traffic_record("test-model", {OLD: 1, NEW: 3}, PAIR, who=" ana ", why="canary", now_s=2.5)
    await publish_traffic(broker.publisher(), record)
    (written,) = broker.records(TRAFFIC)
    traffic = Traffic.FromString(written.value or b"")
    assert written.key == b"test-model"
    assert (traffic.who, traffic.why, traffic.at_ms) == ("ana", "canary", 2500)
    assert {share.deployment: share.weight for share in traffic.shares} == {OLD: 1, NEW: 3}


def test_every_change_can_be_read_for_ninety_days() -> None:
    topics = declare(fleets=[], deployments=[], partitions=1, accepted_partitions=1, reply_partitions=1)
    (config,) = [topic.broker_config() for topic in topics if topic.name == TRAFFIC]
    assert (config["cleanup.policy"], config["retention.ms"]) == ("compact", "-1")
    assert int(config["min.compaction.lag.ms"]) == 90 * 86_400_000


def test_shares_are_typed_as_deployment_and_weight() -> None:
    assert parse_weights([f"{OLD}=90", f"{NEW}=0.5"]) == {OLD: 90.0, NEW: 0.5}
    for word in (OLD, f"{OLD}=", f"{OLD}=much"):
        with pytest.raises(Fatal, match="DEPLOYMENT=WEIGHT"):
            parse_weights([word])


def accepted(bench: GateBench) -> dict[str, int]:
    return {name: len(bench.broker.records(accepted_topic(name))) for name in (OLD, NEW)}


async def test_a_request_in_flight_ends_on_the_deployment_that_it_was_accepted_for() -> None:
    bench = GateBench(cards=PAIR)
    bench.ask(request())
    await bench.step(REQUESTS)
    bench.weights["test-model"] = {NEW: 1.0}
    bench.infer(deployment=OLD)
    await bench.step(RESULTS)
    (outcome,) = bench.outcomes()
    assert outcome.chunk.result.deployment == OLD
    await answered_by(bench, NEW)
    assert bench.outcomes()[1].chunk.result.deployment == NEW


async def test_a_redelivery_goes_where_the_request_went_first_also_after_a_restart() -> None:
    bench = GateBench(cards=PAIR)
    bench.ask(request())
    await bench.step(REQUESTS)
    bench.weights["test-model"] = {NEW: 1.0}
    bench.start()
    await bench.redeliver(REQUESTS)
    assert accepted(bench) == {OLD: 2, NEW: 0}


async def test_a_robot_that_moved_gets_no_actions_for_an_older_observation_than_it_has() -> None:
    bench = GateBench(cards=PAIR)
    bench.ask(request())
    await bench.step(REQUESTS)
    bench.weights["test-model"] = {NEW: 1.0}
    await answered_by(bench, NEW)
    bench.infer(deployment=OLD)
    await bench.step(RESULTS)
    newer, older = bench.outcomes()
    assert newer.chunk.result.deployment == NEW
    assert (older.rejection.code, older.rejection.status) == (Code.SUPERSEDED, 409)
    await answered(bench, request(), correlation_id="later")
    assert accepted(bench) == {OLD: 1, NEW: 2}


async def answered_by(bench: GateBench, deployment: str) -> None:
    bench.ask(request(step=1))
    await bench.step(REQUESTS)
    bench.infer(deployment=deployment)
    await bench.step(RESULTS)
