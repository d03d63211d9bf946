"""Dead letters in the console: who may see them, what is asked before one is sent again, what the audit log keeps."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.errors import Unavailable
from schemas.messages import AuditEvent
from schemas.scopes import DEFAULT_SCOPES, Scope
from schemas.topics import AUDIT
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, DictKeys, HeldLetters, key_record
from tests.unit.console_case import Visitor, console_api, session_of, visiting
from tests.unit.test_console_pages import HOSTILE
from tests.unit.test_dlq import dead, letter

OPERATOR = tuple(Scope)


def operators(*letters: Any, audit: bool = True) -> Api:
    """A console with dead letters, and a key that may everything."""
    api = console_api(table=DictKeys(key_record(scopes=OPERATOR)), letters=HeldLetters(*letters))
    if audit:
        api.broker.create_topic(AUDIT, 1)
    return api


def told(api: Api) -> list[AuditEvent]:
    return [AuditEvent.FromString(record.value or b"") for record in api.broker.records(AUDIT)]


async def text_at(visitor: Visitor, path: str, status: int = 200) -> str:
    answer = await visitor.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


async def test_dead_letters_are_listed_and_filtered() -> None:
    api = operators(letter(offset=1), letter(dead("vla.results.v1"), offset=2, reason="forged"))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        text = await text_at(visitor, "/console/dead-letters")
        assert "vla.requests.v1.dlq/0/1" in text
        assert "vla.results.v1.dlq/0/2" in text
        text = await text_at(visitor, "/console/dead-letters?topic=vla.results.v1&reason=forged")
        assert "vla.requests.v1.dlq/0/1" not in text
        assert "vla.results.v1.dlq/0/2" in text
        assert "None: every stage" in await text_at(visitor, "/console/dead-letters?reason=nothing")


@pytest.mark.parametrize("path", ["", "/replay", "/vla.requests.v1.dlq/0/1"])
async def test_dead_letters_are_for_operators_alone(path: str) -> None:
    api = operators(letter(offset=1))
    async with visiting(api, session_of(DEFAULT_SCOPES)) as visitor:
        assert "arm-1" not in await text_at(visitor, f"/console/dead-letters{path}", 403)


async def test_a_letter_shows_its_headers_and_what_it_holds() -> None:
    async with visiting(operators(letter(offset=1)), session_of(OPERATOR)) as visitor:
        text = await text_at(visitor, "/console/dead-letters/vla.requests.v1.dlq/0/1")
        for part in ("undecodable", "request_gate", "vla.requests.v1/2/9", "000000  ff 00", "__connect.errors.topic"):
            assert part in text


@pytest.mark.parametrize("place", [
    "vla.requests.v1.dlq/0/2", "vla.requests.v1/0/1", "vla.requests.v1.dlq/-1/0", "x.dlq/0/1",
    "vla.requests.v1.dlq/0/x", "vla.a.dlq/0/9" + "9" * 30,
])  # fmt: skip
async def test_where_no_letter_lies_nothing_is_shown(place: str) -> None:
    async with visiting(operators(letter(offset=1)), session_of(OPERATOR)) as visitor:
        await text_at(visitor, f"/console/dead-letters/{place}", 404)
        await text_at(visitor, f"/console/dead-letters/replay?place={place}", 404)


async def test_hostile_bytes_of_a_letter_are_text() -> None:
    hostile = dead(key=HOSTILE.encode(), value=HOSTILE.encode(), raw_headers=[(HOSTILE, HOSTILE.encode())])
    api = operators(letter(hostile, offset=1, reason=HOSTILE))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        for path in ("", "/vla.requests.v1.dlq/0/1", "/replay"):
            assert "<script>alert" not in await text_at(visitor, f"/console/dead-letters{path}")


async def test_sending_again_asks_first_and_tells_what_cannot_be_sent() -> None:
    api = operators(letter(offset=1), letter(offset=2, cut=9))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        text = await text_at(visitor, "/console/dead-letters/replay")
        assert 'value="vla.requests.v1.dlq/0/1"' in text
        assert "9 bytes of its value were cut off" in text
    assert api.letters.sent == []


async def test_what_was_confirmed_is_sent_and_nothing_else() -> None:
    api = operators(letter(offset=1), letter(offset=2))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay?place=vla.requests.v1.dlq/0/2")
        answer = await visitor.send("/console/dead-letters/replay", {"places": "vla.requests.v1.dlq/0/2"})
        assert answer.status_code == 303
        # However often it is loaded.
        for _ in range(2):
            text = await text_at(visitor, answer.headers["location"])
            assert "1 sent again" in text
            assert "vla.requests.v1/2/100" in text
    assert [str(each.place) for each in api.letters.sent] == ["vla.requests.v1.dlq/0/2"]


async def test_what_a_replay_could_not_send_is_told_with_the_reason() -> None:
    api = operators(letter(offset=1), letter(offset=2, cut=9))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay")
        places = " ".join(f"vla.requests.v1.dlq/0/{offset}" for offset in (1, 2, 3))
        answer = await visitor.send("/console/dead-letters/replay", {"places": places})
        text = await text_at(visitor, answer.headers["location"])
        for part in ("1 was sent again, 1 could not be, 1 no longer lay there", "9 bytes of its value were cut off"):
            assert part in text


async def test_a_replay_whose_form_comes_again_sends_nothing_again() -> None:
    api = operators(letter(offset=1))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay")
        fields = {"places": "vla.requests.v1.dlq/0/1"}
        assert (await visitor.send("/console/dead-letters/replay", fields)).status_code == 303
        again = await visitor.send("/console/dead-letters/replay", fields)
        assert again.status_code == 409
        assert "This form was sent already" in again.text
        assert "revoke it" not in again.text
    assert (len(api.letters.sent), len(told(api))) == (1, 2)


@pytest.mark.parametrize("told", ["", "x", "é", "A" * 40, "eJwDAAAAAAE"])
async def test_no_link_makes_the_page_after_a_replay_say_things(told: str) -> None:
    async with visiting(operators(), session_of(OPERATOR)) as visitor:
        assert (await visitor.client.get("/console/dead-letters/replayed", params={"told": told})).status_code == 404


async def test_what_became_of_a_replay_is_for_the_session_that_sent_it() -> None:
    api = operators(letter(offset=1))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay")
        answer = await visitor.send("/console/dead-letters/replay", {"places": "vla.requests.v1.dlq/0/1"})
    async with visiting(api, session_of(OPERATOR, ttl_s=599)) as other:
        await text_at(other, answer.headers["location"], 404)


async def test_the_address_after_the_largest_replay_fits_into_a_request_line() -> None:
    # nginx' large_client_header_buffers.
    largest_bytes = 8192
    letters = [letter(offset=2**40 + number, cut=number * 1001) for number in range(50)]
    api = operators(*letters)
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay")
        places = " ".join(str(each.place) for each in letters)
        answer = await visitor.send("/console/dead-letters/replay", {"places": places})
        assert answer.status_code == 303
        assert len(answer.headers["location"]) < largest_bytes


async def test_a_replay_is_in_the_audit_log_with_who_what_and_from_where() -> None:
    api = operators(letter(offset=1))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay")
        await visitor.send("/console/dead-letters/replay", {"places": "vla.requests.v1.dlq/0/1"})
    began, ended = told(api)
    for each, action in ((began, "dlq.replay"), (ended, "dlq.replayed")):
        assert (each.action, each.actor, each.origin) == (action, f"key k-1 of {CUSTOMER}", "127.0.0.1")
        assert each.details["places"] == "vla.requests.v1.dlq/0/1"
        assert each.at_ms > 0
    assert (ended.details["sent"], ended.details["refused"]) == ("1", "0")


async def test_without_the_audit_log_nothing_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(*args: object, **options: object) -> None:
        raise Unavailable("Kafka is away")

    api = operators(letter(offset=1))
    monkeypatch.setattr(api.publisher, "send", away)
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay")
        answer = await visitor.send("/console/dead-letters/replay", {"places": "vla.requests.v1.dlq/0/1"})
        assert answer.status_code == 503
    assert api.letters.sent == []


@pytest.mark.parametrize(
    "places", ["", "x", "vla.requests.v1/0/1", "vla.requests.v1.dlq/0/1 x", "vla.requests.v1.dlq/0/1 " * 51]
)
async def test_a_replay_names_letters_by_their_places(places: str) -> None:
    api = operators(letter(offset=1))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        await visitor.get("/console/dead-letters/replay")
        assert (await visitor.send("/console/dead-letters/replay", {"places": places})).status_code == 400
    assert (api.letters.sent, told(api)) == ([], [])


@pytest.mark.parametrize("csrf", ["", "0" * 64])
async def test_a_replay_that_a_stranger_sends_does_nothing(csrf: str) -> None:
    api = operators(letter(offset=1))
    async with visiting(api, session_of(OPERATOR)) as visitor:
        fields = {"places": "vla.requests.v1.dlq/0/1", "csrf": csrf}
        assert (await visitor.send("/console/dead-letters/replay", fields)).status_code == 403
    assert (api.letters.sent, told(api)) == ([], [])


async def test_without_a_user_in_kafka_the_page_says_what_is_missing() -> None:
    api = operators()
    api.letters.away = "set CONSOLE_KAFKA_SASL_USERNAME"
    async with visiting(api, session_of(OPERATOR)) as visitor:
        assert "set CONSOLE_KAFKA_SASL_USERNAME" in await text_at(visitor, "/console/dead-letters")
