"""POST /v1/control: whose key stops what, and that an answer means that the log has it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ingest_api.control import ControlRoute
from runtime.errors import Unavailable
from schemas.messages import Control
from schemas.topics import CONTROL
from tests.cards import cards
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, KEY, DictKeys, key_record
from tests.unit.test_api_inference import assert_problem

STOP = {"action": "stop", "scope": "robot", "robot_id": "arm-1", "reason": "a person is in the cell", "by": "ana"}


def order(**changes: Any) -> dict[str, Any]:
    """STOP with changes; a field changed to ... is left out."""
    return {name: value for name, value in {**STOP, **changes}.items() if value is not ...}


def with_tier(tier: str) -> Api:
    return Api(table=DictKeys(key_record(tier=tier)))


async def control(api: Api, body: Any, key: str | None = KEY) -> Any:
    async with api.client(key) as client:
        return await client.post("/v1/control", json=body)


def written(api: Api) -> list[Control]:
    return [Control.FromString(record.value or b"") for record in api.broker.records(CONTROL)]


async def test_a_stop_is_a_record_with_who_and_why_before_it_is_answered() -> None:
    api = Api()
    answer = await control(api, STOP)
    assert answer.status_code == 200
    (record,) = written(api)
    assert api.broker.records(CONTROL)[0].key == f"robot:{CUSTOMER}/arm-1".encode()
    assert (record.stopped, record.why) == (True, "a person is in the cell")
    assert record.who == f"ana (key k-1 of {CUSTOMER})"
    document = answer.json()
    assert document == {
        "target": record.target,
        "stopped": True,
        "who": record.who,
        "why": record.why,
        "at_ms": api.broker.records(CONTROL)[0].timestamp_ms,
        "record": f"{CONTROL}/0/0",
    }


async def test_a_resume_is_a_record_too() -> None:
    api = Api()
    await control(api, STOP)
    assert (await control(api, order(action="resume", reason="the cell is empty", by=...))).json()["stopped"] is False
    assert [(record.stopped, record.why) for record in written(api)] == [
        (True, "a person is in the cell"),
        (False, "the cell is empty"),
    ]


@pytest.mark.parametrize("tier", ["free", "pro", "enterprise"])
async def test_any_key_stops_robots_and_the_fleet_of_its_own_customer_and_no_others(tier: str) -> None:
    api = with_tier(tier)
    assert (await control(api, STOP)).status_code == 200
    assert (await control(api, order(scope="fleet", robot_id=...))).status_code == 200
    assert [record.target for record in written(api)] == [f"robot:{CUSTOMER}/arm-1", f"fleet:{CUSTOMER}"]
    assert_problem(await control(api, order(customer_id="another")), 400, "malformed")


@pytest.mark.parametrize("wide", [{"scope": "all"}, {"scope": "model", "model": "test-model"}])
@pytest.mark.parametrize("action", ["stop", "resume"])
async def test_what_others_use_too_takes_an_enterprise_key(wide: dict[str, str], action: str) -> None:
    body = order(robot_id=..., action=action, **wide)
    for tier in ("free", "pro"):
        api = with_tier(tier)
        assert_problem(await control(api, body), 403, "forbidden")
        assert written(api) == []
    api = with_tier("enterprise")
    assert (await control(api, body)).status_code == 200
    assert [record.target for record in written(api)] == ["all" if wide["scope"] == "all" else "model:test-model"]


async def test_a_model_that_is_not_served_is_a_slip_to_stop_and_may_still_be_resumed() -> None:
    api = with_tier("enterprise")
    body = order(robot_id=..., scope="model", model="test-modle")
    assert_problem(await control(api, body), 404, "unknown_model")
    assert (await control(api, {**body, "action": "resume"})).status_code == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": ...},
        {"reason": ""},
        {"reason": "  "},
        {"reason": "x" * 501},
        {"reason": "a\u001b[2J"},
        {"by": "x" * 101},
        {"action": "pause"},
        {"scope": "robots"},
        {"robot_id": ...},
        {"robot_id": "arm 1"},
        {"robot_id": "another/arm-1"},
        {"scope": "fleet"},
        {"model": "test-model"},
    ],
)
async def test_an_order_that_leaves_open_what_stops_or_why_is_refused(changes: dict[str, Any]) -> None:
    api = Api()
    assert_problem(await control(api, order(**changes)), 400, "malformed")
    assert written(api) == []


async def test_nobody_stops_anything_without_a_key() -> None:
    api = Api()
    assert_problem(await control(api, STOP, key=None), 401, "unauthenticated")
    assert written(api) == []


async def test_while_kafka_is_away_the_operator_is_told_that_it_does_not_hold() -> None:
    api = Api()
    api.publisher.fail_next(CONTROL, Unavailable("broker 1 at 10.0.0.7 is away"))
    answer = await control(api, STOP)
    assert_problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"]
    assert "10.0.0.7" not in answer.text


async def test_an_acknowledgement_that_does_not_come_is_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    api = Api()

    async def never(*args: Any, **options: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(api.publisher, "send", never)
    route = ControlRoute(cards=cards(), keys=api.keys, publisher=api.publisher, timeout_s=0.01)
    api.app.router.routes[:] = [r for r in api.app.router.routes if getattr(r, "path", "") != "/v1/control"]
    api.app.add_api_route("/v1/control", route.post, methods=["POST"])
    assert "send it again" in assert_problem(await control(api, STOP), 503, "unavailable")["detail"]


async def test_the_example_of_the_openapi_document_runs() -> None:
    api = Api()
    async with api.client(None) as client:
        document = (await client.get("/openapi.json")).json()
    post = document["paths"]["/v1/control"]["post"]
    example = post["requestBody"]["content"]["application/json"]["example"]
    assert post["security"] == [{"bearer": ["control"]}]
    assert (await control(api, example)).status_code == 200
