"""Robot types that customers bring: by API into the log, from the log into the gate, in monitor mode only."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_api.robots import EXAMPLE
from runtime.embodiments import MAX_CARDS, RobotTypes, next_embodiment, own_key, publish_embodiment
from runtime.errors import Reject
from schemas.action_space import ArmControl, Convention, Gripper
from schemas.cards import CardSet, EmbodimentCard, ModelCard, Pairing
from schemas.messages import OwnEmbodiment, SafetyMode
from schemas.topics import EMBODIMENTS
from tests.cards import cards, model
from tests.gate_bench import GateBench, request
from tests.in_memory import InMemoryBroker
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, KEY, DictKeys, key_record
from tests.unit.test_api_inference import assert_problem

#: What the test model would put out for robots that bring their own card: two joints and a gripper, 1 open.
OUTPUTS = Convention(
    control=ArmControl.JOINT_POSITION, dims=3, gripper=Gripper(action_index=2, open_value=1, closed_value=0)
)


def served(**changes: object) -> CardSet:
    pairings = {"custom": Pairing(outputs=OUTPUTS)}
    fields: dict[str, object] = {"embodiments": ("test_arm", "custom"), "pairings": pairings, "state_dim": 2}
    return cards(model(**{**fields, **changes}))


def own(**changes: Any) -> dict[str, Any]:
    """A card as a customer sends it, that fits what `served` takes."""
    content = {**copy.deepcopy(EXAMPLE), **changes}
    content["state"] = content["state"][:2] if "state" not in changes else changes["state"]
    return content


def brought(robots: RobotTypes, content: dict[str, Any], customer: str = CUSTOMER) -> None:
    """As the view reads it out of the log."""
    card = EmbodimentCard.model_validate(content)
    record = OwnEmbodiment(customer_id=customer, robot_type=card.robot_type, card=card.model_dump_json().encode())
    robots.update(own_key(customer, card.robot_type).encode(), record.SerializeToString(), 0)


async def put(api: Api, content: Any, robot_type: str = "my_arm") -> Any:
    async with api.client() as client:
        return await client.put(f"/v1/robots/{robot_type}", json=content)


def follow(api: Api) -> None:
    """Let the API read what it wrote, as its view does."""
    for record in api.broker.records(EMBODIMENTS):
        api.robots.update(record.key or b"", record.value, record.timestamp_ms)


async def test_a_card_comes_back_as_it_was_brought_and_leaves_when_it_is_withdrawn() -> None:
    api = Api(robots=RobotTypes(served()))
    answer = await put(api, own())
    assert answer.status_code == 200, answer.text
    assert answer.json()["version"] == 1
    follow(api)
    async with api.client() as client:
        found = (await client.get("/v1/robots/my_arm")).json()
        listed = (await client.get("/v1/robots")).json()["robots"]
        assert (await put(api, own(title="Better"))).json()["version"] == 2
        gone = await client.delete("/v1/robots/my_arm")
    assert EmbodimentCard.model_validate(found["card"]) == EmbodimentCard.model_validate(own())
    assert (found["own"], found["verified"], found["models"]) == (True, False, ["test-model"])
    assert [robot["robot_type"] for robot in listed] == ["test_arm", "my_arm"]
    assert gone.json()["withdrawn"]
    follow(api)
    async with api.client() as client:
        assert_problem(await client.get("/v1/robots/my_arm"), 404, "not_found")
    key = own_key(CUSTOMER, "my_arm").encode()
    assert [(record.key, record.value is None) for record in api.broker.records(EMBODIMENTS)] == [
        (key, False), (key, False), (key, True)
    ]  # fmt: skip


async def test_robot_types_of_the_installation_are_listed_without_a_key_and_others_own_ones_never() -> None:
    api = Api(table=DictKeys(key_record()), robots=RobotTypes(served()))
    brought(api.robots, own(), customer="someone-else")
    for key in (None, KEY):
        async with api.client(key) as client:
            assert [robot["robot_type"] for robot in (await client.get("/v1/robots")).json()["robots"]] == ["test_arm"]
            assert_problem(await client.get("/v1/robots/my_arm"), 404, "not_found")
            assert (await client.get("/v1/robots/test_arm")).json()["verified"]


@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"robot_type": "test_arm"}, 422, "invalid_request", "robot_type"),
        ({"robot_type": "custom"}, 400, "malformed", "body"),
        ({"verified": True}, 422, "invalid_request", "verified"),
        ({"robot_type": "other_name"}, 400, "malformed", "robot_type"),
        ({"colour": "red"}, 400, "malformed", "colour"),
        ({"state": []}, 400, "malformed", "state"),
        ({"title": "x" * 40_000}, 413, "too_large", "body"),
    ],
)
async def test_a_card_that_cannot_hold_is_refused_with_its_field(
    changes: dict[str, Any], status: int, code: str, field: str
) -> None:
    api = Api(robots=RobotTypes(served()))
    place = changes.get("robot_type", "my_arm")
    answer = await put(api, own(**changes), "my_arm" if place == "other_name" else place)
    assert_problem(answer, status, code)
    assert field in [violation["field"] for violation in answer.json()["violations"]]
    assert not api.broker.records(EMBODIMENTS)


async def test_without_a_key_nobody_brings_or_withdraws_anything() -> None:
    api = Api(robots=RobotTypes(served()))
    brought(api.robots, own())
    async with api.client(None) as client:
        assert_problem(await client.put("/v1/robots/my_arm", json=own()), 401, "unauthenticated")
        assert_problem(await client.delete("/v1/robots/my_arm"), 401, "unauthenticated")
    assert not api.broker.records(EMBODIMENTS)


def test_a_customer_brings_so_many_and_no_more() -> None:
    robots = RobotTypes(served())
    for i in range(MAX_CARDS):
        brought(robots, own(robot_type=f"arm_{i}"))
    again = EmbodimentCard.model_validate(own(robot_type="arm_0"))
    assert next_embodiment(robots, CUSTOMER, again, who="k", origin="o").version == 1
    more = EmbodimentCard.model_validate(own(robot_type="one_more"))
    with pytest.raises(Reject, match="withdraw one"):
        next_embodiment(robots, CUSTOMER, more, who="k", origin="o")
    assert next_embodiment(robots, "another", more, who="k", origin="o").version == 1


@given(st.binary(max_size=200))
def test_a_record_that_is_no_card_takes_the_old_one_away(value: bytes) -> None:
    robots = RobotTypes(served())
    brought(robots, own())
    try:
        robots.update(own_key(CUSTOMER, "my_arm").encode(), value, 0)
    except Exception:  # the view logs it and goes on
        assert robots.own(CUSTOMER, "my_arm") is None


async def test_safety_evaluation_knows_the_callers_own_robot_and_watches_only() -> None:
    api = Api(robots=RobotTypes(served()))
    brought(api.robots, own())
    async with api.client() as client:
        answer = await client.post("/v1/safety/evaluate", json={"robot_type": "my_arm", "action": [9.0, 0.0, 1.0]})
    assert answer.status_code == 200
    assert answer.json()["safety"]["mode"] == "monitor"
    assert answer.json()["safety"]["checks"]["range"] < 0.7


def gate(content: dict[str, Any] | None, card_set: CardSet | None = None) -> GateBench:
    bench = GateBench(cards=card_set or served())
    if content is not None:
        brought(bench.robots, content, customer="customer")
    return bench


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "has no card"),
        (own(control_rate_hz=None), "control_rate_hz"),
        (own(gripper={"action_index": 2, "open_value": 0, "closed_value": 1}), "grippers differ"),
        (own(space={"name": "joint_delta", "control": "joint_delta"}), "control is joint_position of the model"),
        (own(state=[{"name": "j1", "unit": "rad"}], space={"control": "joint_position"}), "2 state values"),
        (own(actions=own()["actions"][1:], gripper=None, space={"control": "joint_position"}), "3 values"),
    ],
)
async def test_a_robot_that_the_model_cannot_drive_is_refused_at_the_gate_with_the_reason(
    content: dict[str, Any] | None, why: str
) -> None:
    bench = gate(content)
    bench.ask(request(robot_type="my_arm"))
    await bench.step()
    rejection = bench.outcomes()[0].rejection
    assert rejection.status == 422
    assert rejection.code in ("invalid_robot_type", "embodiment_mismatch", "invalid_state")
    assert any(why in violation.detail for violation in rejection.violations), rejection.violations


async def test_a_deployment_that_names_no_custom_robots_takes_none() -> None:
    bench = gate(own(), cards())
    bench.ask(request(robot_type="my_arm"))
    await bench.step()
    assert bench.outcomes()[0].rejection.code == "embodiment_mismatch"


async def test_a_customers_own_robot_gets_actions_in_monitor_mode_whatever_it_asks_for() -> None:
    bench = gate(own())
    asked = request(robot_type="my_arm")
    asked.options.safety_mode = SafetyMode.SAFETY_MODE_REJECT
    bench.ask(asked)
    await bench.step()
    bench.infer(np.full((4, 3), 9.0, np.float32))
    await bench.step()
    chunk = bench.outcomes()[0].chunk
    assert chunk.safety.mode == SafetyMode.SAFETY_MODE_MONITOR
    assert chunk.safety.score < 0.7
    assert list(chunk.names) == ["j1", "j2", "grip"]
    assert chunk.control_rate_hz == 20


async def test_what_is_written_is_what_the_gate_reads() -> None:
    broker = InMemoryBroker({EMBODIMENTS: 1})
    robots = RobotTypes(served())
    record = next_embodiment(robots, CUSTOMER, EmbodimentCard.model_validate(own()), who="k", origin="o")
    await publish_embodiment(broker.publisher(), CUSTOMER, "my_arm", record)
    (written,) = broker.records(EMBODIMENTS)
    robots.update(written.key or b"", written.value, written.timestamp_ms)
    assert robots.find(CUSTOMER, "my_arm") == EmbodimentCard.model_validate(own())
    assert robots.find("another", "my_arm") is None


def test_a_card_of_the_installation_wins_over_one_that_was_brought_before_it() -> None:
    robots = RobotTypes(served())
    brought(robots, own(robot_type="test_arm"))
    card = robots.find(CUSTOMER, "test_arm")
    assert card is not None
    assert card.verified


def test_a_model_says_what_custom_robots_would_get() -> None:
    assert isinstance(served().models[0], ModelCard)
    with pytest.raises(ValueError, match=r"pairings.custom.outputs"):
        served(pairings={})
