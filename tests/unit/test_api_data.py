"""Consent, feedback, episodes and search as a client sees them: refusals, records, and whose rows are read."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from sqlalchemy import Executable
from sqlalchemy.dialects.postgresql.base import PGDialect

from schemas.messages import Consent, EpisodeEvent, EpisodeKind, Feedback, FeedbackKind
from schemas.topics import CONSENT, EPISODES, FEEDBACK
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, KEY
from tests.unit.test_api_inference import assert_problem

DIALECT = PGDialect()  # type: ignore[no-untyped-call] # SQLAlchemy has no types for it
REQUEST_ID = "6f1c0a3e-5d1b-4c5e-9f59-0f3a1f8f2a10"


async def send(api: Api, method: str, path: str, json: Any = None, key: str | None = KEY) -> Any:
    async with api.client(key) as client:
        return await client.request(method, path, json=json)


def values(statement: Executable) -> str:
    """What a statement compares with."""
    compiled: Any = statement
    return str(compiled.compile(dialect=DIALECT).params)


def inference_row(**changes: Any) -> dict[str, Any]:
    return {"id": uuid.uuid4(), "robot_id": "arm-1", "action_horizon": 4, "action_dim": 3, **changes}


# --- consent


async def test_who_never_said_anything_has_the_default_tier() -> None:
    document = (await send(Api(), "GET", "/v1/customers/me/consent")).json()
    assert (document["customer_id"], document["tier"], document["version"]) == (CUSTOMER, "none", 0)
    assert document["can_use_for_training"] is False


async def test_consent_is_a_record_with_who_and_the_next_version() -> None:
    api = Api()
    answer = await send(api, "PUT", f"/v1/customers/{CUSTOMER}/consent", {"tier": "full"})
    assert answer.status_code == 200
    assert answer.json()["can_use_for_training"] is True
    (record,) = api.broker.records(CONSENT)
    written = Consent.FromString(record.value or b"")
    assert record.key == CUSTOMER.encode()
    assert (written.tier, written.version, written.who) == ("full", 1, "key k-1")
    await send(api, "PUT", "/v1/customers/me/consent", {"tier": "none"})
    assert Consent.FromString(api.broker.records(CONSENT)[-1].value or b"").version == 2


async def test_a_word_that_follows_an_erasure_at_once_does_not_undo_it() -> None:
    """Before the API has heard of the erasure from the log."""
    api = Api()
    await send(api, "DELETE", "/v1/customers/me/data")
    await send(api, "PUT", "/v1/customers/me/consent", {"tier": "full"})
    erased, said = (Consent.FromString(record.value or b"") for record in api.broker.records(CONSENT))
    assert said.erased_before_ms == erased.erased_before_ms > 0
    assert (erased.version, said.version) == (1, 2)


@pytest.mark.parametrize("path", ["consent", "consent/history", "data"])
async def test_another_customers_data_is_not_found(path: str) -> None:
    api = Api()
    assert_problem(await send(api, "GET", f"/v1/customers/somebody-else/{path}"), 404, "not_found")
    assert_problem(await send(api, "GET", f"/v1/customers/me/{path}", key=None), 401, "unauthenticated")
    assert api.reader.asked == []


@pytest.mark.parametrize(
    "body",
    [{}, {"tier": "everything"}, {"tier": "full", "expires_at": "2001-01-01T00:00:00Z"}, {"tier": "full", "x": 1}],
)
async def test_a_consent_that_says_nothing_clear_is_refused_and_not_written(body: dict[str, Any]) -> None:
    api = Api()
    assert (await send(api, "PUT", "/v1/customers/me/consent", body)).status_code == 400
    assert api.broker.records(CONSENT) == []


async def test_an_erasure_is_asked_for_once_the_broker_has_it_and_says_what_kafka_keeps() -> None:
    api = Api()
    answer = await send(api, "DELETE", "/v1/customers/me/data")
    assert answer.status_code == 202
    document = answer.json()
    assert document["state"] == "none"
    assert {"vla.requests.v1", "vla.outcomes.v1"} <= {each["topic"] for each in document["kafka"]}
    assert all(each["kept_for_s"] > 0 for each in document["kafka"])
    written = Consent.FromString(api.broker.records(CONSENT)[-1].value or b"")
    assert written.erased_before_ms > 0
    assert written.tier == "none"


# --- feedback


async def test_feedback_names_the_row_of_its_inference() -> None:
    api = Api()
    row = inference_row()
    api.reader.found = [row]
    body = {"request_id": REQUEST_ID, "success": True, "rating": 4, "comment": "clean grasp"}
    answer = await send(api, "POST", "/v1/feedback/success", body)
    assert answer.status_code == 200
    (record,) = api.broker.records(FEEDBACK)
    said = Feedback.FromString(record.value or b"")
    assert (said.row_id, said.robot_id, said.customer_id) == (str(row["id"]), "arm-1", CUSTOMER)
    assert (said.kind, said.success, said.rating) == (FeedbackKind.FEEDBACK_KIND_SUCCESS, True, 4)
    assert record.key == b"arm-1"
    assert CUSTOMER in values(api.reader.asked[-1])


async def test_both_ways_of_posting_feedback_say_the_same() -> None:
    api = Api()
    api.reader.found = [inference_row()]
    body = {"request_id": REQUEST_ID, "failure_type": "dropped_object", "feedback_id": str(uuid.uuid4())}
    await send(api, "POST", "/v1/feedback/failure-report", body)
    await send(api, "POST", "/v1/feedback", {"type": "failure-report", **body})
    one, other = (Feedback.FromString(record.value or b"") for record in api.broker.records(FEEDBACK))
    assert one == other


async def test_feedback_on_a_request_that_is_not_yours_is_not_found() -> None:
    api = Api()
    answer = await send(api, "POST", "/v1/feedback/success", {"request_id": "nobody's", "success": True})
    assert_problem(answer, 404, "not_found")
    assert api.broker.records(FEEDBACK) == []


@pytest.mark.parametrize(
    ("kind", "fields", "status", "field"),
    [
        ("success", {}, 400, "success"),
        ("safety-rating", {}, 400, "rating"),
        ("safety-rating", {"rating": 6}, 422, "rating"),
        ("safety-rating", {"rating": 0}, 422, "rating"),
        ("safety-rating", {"rating": 3, "success": True}, 400, "success"),
        ("action-correction", {}, 400, "actions"),
        ("action-correction", {"actions": []}, 422, "actions"),
        ("action-correction", {"actions": [[0.1, 0.2]]}, 422, "actions"),
        ("action-correction", {"actions": [[0.1, 0.2, 0.3]] * 5}, 422, "actions"),
        ("action-correction", {"actions": [[0.1, 0.2, 1e39]]}, 422, "actions"),
        ("failure-report", {"failure_type": "Not A Code"}, 400, "failure_type"),
    ],
)
async def test_feedback_out_of_range_names_the_field(
    kind: str, fields: dict[str, Any], status: int, field: str
) -> None:
    api = Api()
    api.reader.found = [inference_row()]
    answer = await send(api, "POST", f"/v1/feedback/{kind}", {"request_id": REQUEST_ID, **fields})
    assert answer.status_code == status
    assert [violation["field"] for violation in answer.json()["violations"]] == [field]
    assert api.broker.records(FEEDBACK) == []


async def test_a_correction_has_the_shape_of_the_chunk() -> None:
    api = Api()
    api.reader.found = [inference_row()]
    body = {"request_id": REQUEST_ID, "actions": [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]}
    assert (await send(api, "POST", "/v1/feedback/action-correction", body)).status_code == 200
    said = Feedback.FromString(api.broker.records(FEEDBACK)[0].value or b"")
    assert (said.corrected.horizon, said.corrected.dim) == (2, 3)
    assert list(said.corrected.values) == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


# --- episodes


async def test_an_episode_belongs_to_whose_key_it_is() -> None:
    api = Api()
    body = {"event": "end", "robot_id": "arm-1", "episode_id": "e-1", "success": False}
    assert (await send(api, "POST", "/v1/episodes", body)).status_code == 200
    (record,) = api.broker.records(EPISODES)
    event = EpisodeEvent.FromString(record.value or b"")
    assert (event.customer_id, event.kind) == (CUSTOMER, EpisodeKind.EPISODE_KIND_END)
    assert event.HasField("success")
    assert event.success is False


async def test_a_start_cannot_be_a_success() -> None:
    api = Api()
    body = {"event": "start", "robot_id": "arm-1", "episode_id": "e-1", "success": True}
    assert_problem(await send(api, "POST", "/v1/episodes", body), 400, "malformed")
    assert api.broker.records(EPISODES) == []


# --- reading


@pytest.mark.parametrize(
    "path",
    [
        "/v1/feedback", "/v1/feedback/stats", "/v1/episodes", "/v1/inferences", "/v1/analytics/usage",
        "/v1/analytics/usage?period=month", "/v1/analytics/safety", "/v1/analytics/robots",
        "/v1/analytics/instructions", "/v1/search/instructions?q=pick+something+up",
        f"/v1/search/scenes/{REQUEST_ID}",
    ],
)  # fmt: skip
async def test_every_reading_route_asks_for_the_callers_rows_only(path: str) -> None:
    api = Api()
    answer = await send(api, "GET", path)
    assert answer.status_code in (200, 404)
    assert all(CUSTOMER in values(statement) for statement in api.reader.asked)
    assert api.reader.asked
    assert_problem(await send(api, "GET", path, key=None), 401, "unauthenticated")
    api.reader.away = True
    assert_problem(await send(api, "GET", path), 503, "unavailable")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/feedback?limit=0", "/v1/feedback?kind=success", "/v1/episodes?success=maybe", "/v1/episodes?limit=501",
        "/v1/analytics/usage?since=yesterday", "/v1/analytics/usage?limit=1&limit=2", "/v1/search/instructions",
        "/v1/search/instructions?q=", "/v1/search/instructions?q=x&min_success_rate=2",
    ],
)  # fmt: skip
async def test_a_parameter_that_would_not_filter_is_refused(path: str) -> None:
    api = Api()
    assert_problem(await send(api, "GET", path), 400, "malformed")
    assert api.reader.asked == []


async def test_a_search_without_an_embedder_says_which_role_is_missing() -> None:
    api = Api()
    api.embedder.away = True
    answer = await send(api, "GET", "/v1/search/instructions?q=pick")
    assert_problem(answer, 503, "unavailable")


async def test_matches_come_nearest_first() -> None:
    api = Api()
    api.reader.found = [{"instruction": "b", "similarity": 0.2}, {"instruction": "a", "similarity": 0.9}]
    document = (await send(api, "GET", "/v1/search/instructions?q=pick")).json()
    assert [match["instruction"] for match in document["matches"]] == ["a", "b"]


async def test_a_scene_that_nobody_keeps_is_not_found() -> None:
    assert_problem(await send(Api(), "GET", f"/v1/search/scenes/{REQUEST_ID}"), 404, "not_found")
