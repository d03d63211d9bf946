"""What the pages show and to whom: rows, hostile text, servers that are away, stops; without a broker or a browser."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from ingest_api.console.log_frames import MISSING_USER
from runtime.control import control_record, model_target, robot_target
from schemas.headers import Source
from schemas.messages import AuditEvent, Control, Image, ImageEncoding, InferenceRequest
from schemas.scopes import DEFAULT_SCOPES, Scope
from schemas.topics import AUDIT, CONTROL, OUTCOMES, REQUESTS
from tests.in_memory import InMemoryBroker
from tests.pictures import jpeg
from tests.unit.api_case import Api, chunk_outcome
from tests.unit.api_stand_ins import CUSTOMER, DictKeys, key_record
from tests.unit.break_in_case import confined, text_of
from tests.unit.console_case import console_api, session_of, visiting

ROW_ID = "6f1c0a3e-5d1b-4c5e-9f59-0f3a1f8f2a10"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"
SOURCE = Source(REQUESTS, 2, 41)
OUTCOME = Source(OUTCOMES, 2, 40)


def row(**changes: Any) -> dict[str, Any]:
    """A row of inference_log as the pages read it: 4 steps of 3 that passed."""
    return {
        "id": uuid.UUID(ROW_ID), "request_id": "r-1", "customer_id": CUSTOMER, "robot_id": "arm-1",
        "robot_type": "test_arm", "model": "test-model", "deployment": "test-model-a", "model_revision": "abc",
        "worker_id": "w-1", "batch_size": 3, "seed": 1, "instruction": "push the red block left",
        "instruction_category": None, "image_shape": [64, 64, 3], "image_count": 1, "episode_id": "e-1", "step": 7,
        "actions": [0.1, 0.0, 1.0] * 4, "action_horizon": 4, "action_dim": 3, "safety_score": 0.9,
        "safety_flags": {"mode": "reject", "modified": False, "checks": {"range": 0.9, "dims": 1.0}},
        "status": "success", "code": None, "http_status": 200, "validation_errors": None, "latency_total_ms": 20.0,
        "latency_queue_ms": 4.0, "latency_gpu_ms": 10.0, "consent_tier": "full", "source_topic": SOURCE.topic,
        "source_partition": SOURCE.partition, "source_offset": SOURCE.offset, "results_offset": 1,
        "outcome_partition": OUTCOME.partition, "outcome_offset": OUTCOME.offset,
        "created_at": datetime(2026, 1, 31, 12, tzinfo=UTC), "decided_at": datetime(2026, 1, 31, 12, tzinfo=UTC),
        **changes,
    }  # fmt: skip


def message(
    data: bytes | None = None, encoding: ImageEncoding.ValueType = ImageEncoding.IMAGE_ENCODING_JPEG, side: int = 0
) -> InferenceRequest:
    content = jpeg() if data is None else data
    image = Image(camera="base", encoding=encoding, data=content, width=side, height=side)
    return InferenceRequest(request_id="r-1", robot_id="arm-1", images=[image], state=[0.5, 0.25])


def with_row(**changes: Any) -> Api:
    api = console_api()
    api.reader.found = [row(**changes)]
    return api


async def text_at(api: Api, path: str, session: str | None = None) -> str:
    async with visiting(api, session or session_of()) as visitor:
        answer = await visitor.get(path)
        assert answer.status_code == 200, answer.text
        return answer.text


# --- fleet


async def test_the_fleet_shows_workers_and_queues_while_postgres_is_away() -> None:
    api = console_api()
    api.reader.away = True
    text = await text_at(api, "/console")
    assert "Postgres does not answer" in text
    assert "test-model-a" in text


async def test_the_fleets_figures_are_the_callers_own() -> None:
    api = console_api()
    await text_at(api, "/console?customer=customer-2")
    assert len(api.reader.asked) == 5
    assert all(confined(statement) for statement in api.reader.asked)


async def test_an_operator_sees_all_customers_or_the_one_asked_for() -> None:
    api = console_api(table=DictKeys(key_record(scopes=tuple(Scope))))
    assert "of all customers" in await text_at(api, "/console", session_of(tuple(Scope)))
    assert not any(confined(statement) for statement in api.reader.asked)
    api.reader.asked.clear()
    assert "of customer-1" in await text_at(api, "/console?customer=customer-1", session_of(tuple(Scope)))
    assert all(confined(statement) for statement in api.reader.asked)


async def test_a_session_without_the_admin_scope_is_no_operators_whatever_its_key_may() -> None:
    api = console_api(table=DictKeys(key_record(scopes=tuple(Scope))))
    await text_at(api, "/console?customer=customer-2", session_of(DEFAULT_SCOPES))
    assert all(confined(statement) for statement in api.reader.asked)


async def test_a_live_part_is_a_part_and_no_page() -> None:
    async with visiting(console_api(), session_of()) as visitor:
        text = (await visitor.live("/console")).text
        assert "<html" not in text
        assert "Deployments" in text


async def test_what_renews_itself_can_be_paused() -> None:
    assert 'hx-trigger="every' in await text_at(console_api(), "/console")
    assert "hx-trigger" not in await text_at(console_api(), "/console?live=off")


# --- requests


async def test_requests_are_listed_with_what_became_of_them() -> None:
    text = await text_at(with_row(status="rejected", code="invalid_image", http_status=422), "/console/requests")
    for part in ("arm-1", "invalid image", "push the red block left", f'href="/console/requests/{ROW_ID}"'):
        assert part in text


async def test_a_filter_is_bound_and_never_part_of_a_statement() -> None:
    api = console_api()
    await text_at(api, "/console/requests?robot_id=' OR 1=1--&status=&code=duplicate")
    (statement,) = api.reader.asked
    assert confined(statement)
    assert "OR 1=1" not in text_of(statement)


@pytest.mark.parametrize("query", ["cursor=1-nonsense", "robot_id=" + "a" * 200, "code=a%00b"])
async def test_a_filter_that_cannot_be_is_refused_as_a_page(query: str) -> None:
    async with visiting(console_api(), session_of()) as visitor:
        answer = await visitor.get(f"/console/requests?{query}")
        assert answer.status_code == 400
        assert "<h1>Malformed</h1>" in answer.text


async def test_a_request_shows_its_frame_chunk_checks_and_stages() -> None:
    api = with_row()
    api.log.requests[SOURCE] = message()
    api.log.outcomes[OUTCOME] = chunk_outcome(api.log.requests[SOURCE])
    text = await text_at(api, f"/console/requests/{ROW_ID}")
    assert f'src="/console/requests/{ROW_ID}/frames/base"' in text
    for part in ("push the red block left", "request gate", "on the device", "gripper", "dx", "range"):
        assert part in text
    assert "By the row alone" not in text
    assert [place.source for place in api.log.asked] == [SOURCE, OUTCOME]


async def test_a_request_that_the_log_has_no_more_is_shown_by_its_row() -> None:
    text = await text_at(with_row(), f"/console/requests/{ROW_ID}")
    for part in ("no longer in the log, which keeps requests for 7 days", "By the row alone", "wait for a batch"):
        assert part in text


async def test_a_log_that_may_not_be_read_says_which_setting_is_missing() -> None:
    api = with_row()
    api.log.away = MISSING_USER
    text = await text_at(api, f"/console/requests/{ROW_ID}")
    assert "CONSOLE_KAFKA_SASL_USERNAME" in text
    assert "push the red block left" in text


async def test_an_instruction_that_may_not_be_kept_is_not_taken_from_the_log() -> None:
    api = with_row(instruction=None)
    api.log.requests[SOURCE] = message()
    api.log.requests[SOURCE].instruction = "secret words of a customer"
    text = await text_at(api, f"/console/requests/{ROW_ID}")
    assert "secret words" not in text
    assert "consent does not allow it" in text


@pytest.mark.parametrize("path", ["/console", "/console/requests", f"/console/requests/{ROW_ID}"])
async def test_hostile_text_is_shown_and_never_run(path: str) -> None:
    found = row(instruction=HOSTILE, robot_id=HOSTILE, episode_id=HOSTILE, code=HOSTILE, robot_type=HOSTILE)
    found |= {"requests": 1, "succeeded": 1, "p50_ms": 1.0, "p95_ms": 1.0, "last_seen": found["created_at"]}
    found |= {"validation_errors": {HOSTILE: HOSTILE}, "begins_at": found["created_at"], "model": HOSTILE}
    api = console_api()
    api.reader.found = [found]
    text = await text_at(api, path)
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "<img src=x" not in text
    assert "{{7*7}}" in text


async def test_the_newest_request_is_sent_only_once() -> None:
    async with visiting(with_row(), session_of()) as visitor:
        assert "Newest request" in (await visitor.get("/console/requests/newest")).text
        assert (await visitor.live(f"/console/requests/newest?seen={ROW_ID}")).status_code == 204
        assert (await visitor.live("/console/requests/newest?seen=another")).status_code == 200


# --- frames


async def frame(api: Api, camera: str = "base") -> Any:
    async with visiting(api, session_of()) as visitor:
        return await visitor.get(f"/console/requests/{ROW_ID}/frames/{camera}")


async def test_a_frame_is_the_robots_own_bytes_and_nothing_keeps_it() -> None:
    api = with_row()
    api.log.requests[SOURCE] = message()
    answer = await frame(api)
    assert answer.status_code == 200
    assert answer.content == jpeg()
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["cache-control"] == "private, no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_pixels_are_shown_as_png() -> None:
    api = with_row()
    api.log.requests[SOURCE] = message(bytes(64 * 64 * 3), ImageEncoding.IMAGE_ENCODING_RGB8, side=64)
    answer = await frame(api)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("data", "encoding", "side"),
    [
        (b"<html><script>alert(1)</script>", ImageEncoding.IMAGE_ENCODING_JPEG, 0),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", ImageEncoding.IMAGE_ENCODING_UNSPECIFIED, 0),
        (b"abc", ImageEncoding.IMAGE_ENCODING_RGB8, 2**31),
        (b"", ImageEncoding.IMAGE_ENCODING_RGB8, 0),
    ],
)
async def test_what_only_claims_to_be_a_picture_is_not_served(
    data: bytes, encoding: ImageEncoding.ValueType, side: int
) -> None:
    api = with_row()
    api.log.requests[SOURCE] = message(data, encoding, side)
    assert (await frame(api)).status_code == 404


async def test_a_camera_that_the_request_has_not_is_not_found() -> None:
    api = with_row()
    api.log.requests[SOURCE] = message()
    assert (await frame(api, "wrist")).status_code == 404


async def test_an_operator_who_looks_at_a_customers_frame_is_written_down() -> None:
    broker = InMemoryBroker({CONTROL: 1, AUDIT: 1})
    api = console_api(table=DictKeys(key_record(scopes=tuple(Scope), customer_id="operators")), broker=broker)
    api.reader.found = [row()]
    api.log.requests[SOURCE] = message()
    async with visiting(api, session_of(tuple(Scope))) as visitor:
        assert (await visitor.get(f"/console/requests/{ROW_ID}/frames/base")).status_code == 200
    (record,) = broker.records(AUDIT)
    told = AuditEvent.FromString(record.value or b"")
    assert (told.action, told.customer_id, told.target) == ("console.frame", CUSTOMER, f"request:{ROW_ID}")
    assert "operators" in told.actor


# --- stop and resume


async def stop(api: Api, session: str | None = None, **fields: str) -> Any:
    async with visiting(api, session or session_of()) as visitor:
        await visitor.get("/console/control")
        sent = {"action": "stop", "scope": "robot", "robot_id": "arm-1", "reason": "a person is in the cell", **fields}
        return await visitor.send("/console/control", sent)


def hear(api: Api, target: str, who: str = "key k-9 of customer-2") -> None:
    control = control_record(target, stopped=True, who=who, why="a reason of theirs", now_s=1000.0)
    api.stops.update(target.encode(), control.SerializeToString(), 0)


async def test_a_stop_by_form_is_the_record_that_rest_writes() -> None:
    api = console_api()
    hear(api, robot_target(CUSTOMER, "arm-1"))
    answer = await stop(api, model="test-model", by="ana")
    assert (answer.status_code, answer.headers["location"]) == (303, "/console/control?done=stopped")
    (record,) = api.broker.records(CONTROL)
    written = Control.FromString(record.value or b"")
    assert (written.target, written.stopped) == (f"robot:{CUSTOMER}/arm-1", True)
    assert (written.who, written.why) == (f"ana (key k-1 of {CUSTOMER})", "a person is in the cell")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"robot_id": "no such/robot"}, 400), ({"robot_id": ""}, 400), ({"reason": " "}, 400),
        ({"scope": "model", "model": "test-model"}, 403), ({"scope": "all"}, 403), ({"scope": "galaxy"}, 400),
        ({"action": "explode"}, 400),
    ],
)  # fmt: skip
async def test_a_stop_that_rest_refuses_is_refused_here_and_the_form_stays_filled(
    fields: dict[str, str], status: int
) -> None:
    api = console_api()
    answer = await stop(api, **fields)
    assert answer.status_code == status
    assert 'role="alert"' in answer.text
    assert api.broker.records(CONTROL) == []
    if "reason" not in fields:
        assert 'value="a person is in the cell"' in answer.text


async def test_only_stops_that_concern_the_viewers_robots_are_shown() -> None:
    api = console_api()
    for target in (robot_target(CUSTOMER, "arm-1"), robot_target("customer-2", "arm-9"), "fleet:customer-2"):
        hear(api, target)
    hear(api, model_target("test-model"))
    text = await text_at(api, "/console/control")
    assert "robot arm-1" in text
    assert "model test-model" in text
    assert "arm-9" not in text
    # Of the model's stop it is shown why, not by whom.
    assert "an operator" in text
    assert text.count("of customer-2") == 1
    everybodys = await text_at(
        console_api(table=DictKeys(key_record(scopes=tuple(Scope))), stops=api.stops),
        "/console/control",
        session_of(tuple(Scope)),
    )
    assert "robot arm-9 of customer-2" in everybodys


async def test_a_resume_asks_why_and_only_for_what_the_viewer_may_lift() -> None:
    api = console_api()
    hear(api, robot_target(CUSTOMER, "arm-1"))
    hear(api, model_target("test-model"))
    async with visiting(api, session_of()) as visitor:
        page = await visitor.get(f"/console/control/resume?target=robot:{CUSTOMER}/arm-1")
        assert "Resume robot arm-1" in page.text
        for target in ("model:test-model", "robot:customer-2/arm-1", "all", ""):
            assert (await visitor.get(f"/console/control/resume?target={target}")).status_code == 404


async def test_a_page_that_is_not_there_says_so() -> None:
    async with visiting(console_api(), session_of()) as visitor:
        answer = await visitor.get("/console/nowhere")
        assert (answer.status_code, "there is no such page" in answer.text.lower()) == (404, True)
        assert (await visitor.get("/console/")).headers["location"] == "/console"


async def test_a_list_of_stops_that_is_not_whole_says_so() -> None:
    assert "nothing is stopped" in await text_at(console_api(), "/console/control")
    text = await text_at(console_api(stops_known=False), "/console/control")
    assert "not read to its end" in text
    assert "nothing is stopped" not in text
