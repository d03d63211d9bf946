"""Episodes and search in the console: what is shown to whom, what hostile text becomes, what a lost frame says."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from sqlalchemy import Executable

from ingest_api.console.episodes import path_of
from ingest_api.console.playback import merged, playback
from schemas.headers import Source
from schemas.scopes import Scope
from schemas.topics import REQUESTS
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, DictKeys, ListedRows, key_record
from tests.unit.break_in_case import confined, text_of
from tests.unit.console_case import console_api, session_of, visiting
from tests.unit.test_console_pages import HOSTILE, message, row

BEGAN = datetime(2026, 1, 31, 12, tzinfo=UTC)


def steps(count: int = 3, **changes: Any) -> list[dict[str, Any]]:
    """Rows of an episode's requests, 100 ms apart."""
    return [
        row(
            **{
                "id": uuid.UUID(int=number + 1),
                "step": number,
                "action_vector": [0.1 * number, 0.0, 1.0],
                "source_offset": number,
                "created_at": BEGAN + timedelta(milliseconds=100 * number),
                **changes,
            }
        )
        for number in range(count)
    ]


def values_of(statement: Executable) -> list[Any]:
    """What a statement sends beside its SQL."""
    return list(cast(Any, statement).compile().params.values())


class EpisodeRows(ListedRows):
    """The rows of one episode: all of them, one by its id, and what the robot told of it."""

    def __init__(self, found: list[dict[str, Any]], told: list[dict[str, Any]]) -> None:
        super().__init__()
        self.found, self.told = found, told

    def rows(self, statement: Executable, settings: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        found = super().rows(statement, settings)
        text = text_of(statement)
        if "FROM episodes" in text:
            return self.told
        if "count(*)" in text:
            return []
        ids = {value for value in values_of(statement) if isinstance(value, uuid.UUID)}
        return [each for each in found if each["id"] in ids] if ids else found


def told(**changes: Any) -> dict[str, Any]:
    return {
        "customer_id": CUSTOMER, "robot_id": "arm-1", "robot_type": "test_arm", "episode_id": "e-1",
        "task": "stack the blocks", "environment_type": None, "success": True, "started_at": BEGAN,
        "ended_at": BEGAN + timedelta(seconds=9), **changes,
    }  # fmt: skip


def with_episode(**changes: Any) -> Api:
    api = console_api(reader=EpisodeRows(steps(**changes), [told()]))
    for number in range(3):
        api.log.requests[Source(REQUESTS, 2, number)] = message()
    return api


async def text_at(api: Api, path: str, **headers: str) -> str:
    async with visiting(api, session_of()) as visitor:
        answer = await visitor.get(path, **headers)
        assert answer.status_code == 200, answer.text
        return answer.text


# --- episodes


async def test_an_episode_is_listed_with_its_task_and_outcome() -> None:
    api = with_episode()
    text = await text_at(api, "/console/episodes")
    for part in ("stack the blocks", "done", "arm-1", 'href="/console/episodes/e-1?robot_id=arm-1"'):
        assert part in text
    assert all(confined(statement) for statement in api.reader.asked)


async def test_a_step_shows_its_frame_its_actions_and_where_it_is_in_the_whole() -> None:
    text = await text_at(with_episode(), "/console/episodes/e-1?step=1")
    for part in (f"/console/requests/{uuid.UUID(int=2)}/frames/base", "1 of 2", "gripper", "0.1", "stack the blocks"):
        assert part in text
    assert text.count('class="marker" x1="240.0"') == 5


async def test_without_a_script_links_lead_through_the_steps() -> None:
    text = await text_at(with_episode(), "/console/episodes/e-1?step=1")
    for number in (0, 2):
        assert f'href="/console/episodes/e-1?robot_id=arm-1&amp;step={number}"' in text


@pytest.mark.parametrize(
    ("asked", "shown"), [("99", "2 of 2"), ("-1", "0 of 2"), ("x", "0 of 2"), ("9" * 30, "0 of 2")]
)
async def test_a_step_that_is_none_is_one_that_there_is(asked: str, shown: str) -> None:
    assert f">{shown}<" in await text_at(with_episode(), f"/console/episodes/e-1?step={asked}")


async def test_the_player_asks_for_a_step_without_the_page() -> None:
    text = await text_at(with_episode(), "/console/episodes/e-1?step=2", **{"hx-request": "true"})
    assert "<html" not in text
    assert f"/console/requests/{uuid.UUID(int=3)}" in text


async def test_a_frame_that_the_log_has_no_more_is_said_to_be_gone() -> None:
    api = with_episode()
    api.log.requests.clear()
    assert "no longer in the log, which keeps requests for 7 days" in await text_at(api, "/console/episodes/e-1")


async def test_a_log_that_cannot_be_read_leaves_the_actions() -> None:
    api = with_episode()
    api.log.away = "the log cannot be read"
    text = await text_at(api, "/console/episodes/e-1")
    assert "the log cannot be read" in text
    assert "gripper" in text


async def test_steps_of_another_robot_with_the_same_episode_id_are_not_among_them() -> None:
    found = [*steps(), *steps(1, robot_id="arm-2", id=uuid.UUID(int=9))]
    text = await text_at(console_api(reader=EpisodeRows(found, [])), "/console/episodes/e-1")
    assert "0 of 2" in text
    assert "arm-2" not in text


async def test_an_instruction_of_a_stranger_is_text() -> None:
    api = console_api(reader=EpisodeRows(steps(instruction=HOSTILE, episode_id=HOSTILE), [told(task=HOSTILE)]))
    for path in ("/console/episodes", "/console/episodes/e-1"):
        text = await text_at(api, path)
        assert "<script>alert" not in text
        assert "<img src=x" not in text
        assert "49" not in text.partition("onerror")[2][:40]


def test_an_episode_id_is_one_part_of_a_path_whatever_it_holds() -> None:
    assert path_of("e-1") == "/console/episodes/e-1"
    assert "/" not in path_of("../a/b?c#d%").removeprefix("/console/episodes/")
    assert path_of("..") == "/console/episodes/%252E%252E"


async def test_an_episode_is_found_by_an_id_with_a_slash() -> None:
    api = with_episode()
    await text_at(api, path_of("day/1?x"))
    assert "day/1?x" in values_of(api.reader.asked[0])


async def test_an_operator_is_shown_whose_episode_it_is() -> None:
    api = console_api(table=DictKeys(key_record(scopes=tuple(Scope))), reader=EpisodeRows(steps(), [told()]))
    async with visiting(api, session_of(tuple(Scope))) as visitor:
        text = (await visitor.get("/console/episodes")).text
    assert f"robot_id=arm-1&amp;customer={CUSTOMER}" in text


def test_steps_without_actions_are_gaps_of_the_curves() -> None:
    rows = steps()
    rows[1]["action_vector"] = None
    play = playback(rows, None)
    assert play.curves[0].values == [0.0, None, 0.2]
    assert play.acted(1) == []
    assert play.offsets_ms == [0, 100, 200]


def test_what_a_robot_told_and_what_its_requests_say_is_one_episode() -> None:
    seen = {
        "customer_id": CUSTOMER, "robot_id": "arm-1", "episode_id": "e-1", "robot_type": "test_arm",
        "instruction": "push", "steps": 12, "refused": 1, "first_at": BEGAN, "last_at": BEGAN,
    }  # fmt: skip
    (one,) = merged([told()], [seen], None, 10)
    assert (one["task"], one["steps"], one["refused"], one["success"]) == ("stack the blocks", 12, 1, True)
    assert one["ended"] == BEGAN + timedelta(seconds=9)
    (untold,) = merged([], [seen], CUSTOMER, 10)
    assert (untold["task"], untold["success"]) == ("push", None)


# --- search


FOUND = {
    "id": uuid.UUID(int=1), "instruction": "push the block", "category": "push", "similarity": 0.9, "request_id": "r-1",
    "robot_id": "arm-1", "robot_type": "test_arm", "episode_id": "e-1", "image_model": "clip", "lighting": "bright",
    "time_of_day": "morning", "environment_type": None, "success": True, "created_at": BEGAN,
    "image_embedding": [1.0] + [0.0] * 511,
}  # fmt: skip


async def test_instructions_are_found_with_their_newest_request() -> None:
    api = console_api()
    api.reader.found = [FOUND]
    text = await text_at(api, "/console/search?q=shove it")
    for part in ("push the block", "0.90", f"/console/requests/{uuid.UUID(int=1)}", "/console/search?like=r-1"):
        assert part in text
    assert all(confined(statement) for statement in api.reader.asked)


async def test_scenes_like_that_of_a_request_are_found_with_their_frames() -> None:
    api = console_api()
    api.reader.found = [FOUND]
    text = await text_at(api, "/console/search?like=r-1")
    assert f'src="/console/search/frames/{uuid.UUID(int=1)}"' in text
    assert all(confined(statement) for statement in api.reader.asked)


async def test_an_operator_searches_in_one_customer_at_a_time() -> None:
    api = console_api(table=DictKeys(key_record(scopes=tuple(Scope))))
    async with visiting(api, session_of(tuple(Scope))) as visitor:
        await visitor.get("/console/search?q=push")
    assert all(confined(statement) for statement in api.reader.asked)


@pytest.mark.parametrize(
    ("query", "status"), [("q=" + "a" * 600, 400), ("q=%00", 400), ("like=%00", 404), ("like=x", 404)]
)
async def test_what_cannot_be_looked_for_is_said_on_the_page(query: str, status: int) -> None:
    async with visiting(console_api(), session_of()) as visitor:
        answer = await visitor.get(f"/console/search?{query}")
        assert answer.status_code == status
        assert 'role="alert"' in answer.text
        assert 'name="q"' in answer.text


async def test_hostile_instructions_that_are_found_are_text() -> None:
    api = console_api()
    api.reader.found = [{**FOUND, "instruction": HOSTILE, "robot_id": HOSTILE}]
    for query in ("q=push", "like=r-1"):
        assert "<script>alert" not in await text_at(api, f"/console/search?{query}")


async def test_a_thumbnail_that_the_log_has_no_more_is_blank() -> None:
    api = console_api()
    api.reader.found = [row()]
    async with visiting(api, session_of()) as visitor:
        answer = await visitor.get(f"/console/search/frames/{uuid.UUID(int=1)}")
        assert answer.headers["content-type"] == "image/svg+xml"
        assert "sandbox" in answer.headers["content-security-policy"]
        api.log.requests[Source(REQUESTS, 2, 41)] = message()
        answer = await visitor.get(f"/console/search/frames/{uuid.UUID(int=1)}")
        assert answer.headers["content-type"] == "image/jpeg"
