"""Break-in attempts at the console: ids of others, forms of strangers, stolen and forged cookies, scripts in data."""

from __future__ import annotations

import functools
import re

import pytest

from ingest_api.console.session import AUDIENCE
from ingest_api.tokens import Tokens
from schemas.scopes import DEFAULT_SCOPES, Scope
from schemas.topics import CONSENT, CONTROL
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, DictKeys, HeldLetters, key_record
from tests.unit.break_in_case import LOOT, NOBODYS, PAYLOADS, TAKEN, VICTIM, TenantDatabase, TenantRows, confined
from tests.unit.console_case import ORIGIN, SECRET, console_api, pages_of, session_of, visiting
from tests.unit.test_dlq import letter

PAGES = pages_of(console_api())
#: Pages that take an id or a name in their path, with that of somebody else's thing.
GETS = [(path, scope) for method, path, scope in PAGES if method == "GET"]
BY_ID = [(path, re.sub(r"\{\w+\}", TAKEN, path)) for path, scope in GETS if "{" in path and scope != Scope.ADMIN]
LISTS = [path for path, scope in GETS if "{" not in path and scope != Scope.ADMIN]
#: Pages and forms of operators.
OPERATORS = [(method, path) for method, path, scope in PAGES if scope == Scope.ADMIN]


@functools.cache
def robbed() -> Api:
    """A console whose stores give everybody's rows to every statement that does not confine itself."""
    return console_api(reader=TenantRows(), database=TenantDatabase())


def inner(text: str, name: str) -> str:
    """A page without what differs by itself: its form token, its times and the id that was asked for."""
    text = re.sub(r'value="[0-9a-f]{64}"|\d\d:\d\d:\d\d\.\d+', "", text)
    return text.replace(name, "ID")


@pytest.mark.parametrize(("path", "taken"), BY_ID)
async def test_a_page_of_anothers_id_is_that_of_an_id_which_nobody_has(path: str, taken: str) -> None:
    api = robbed()
    async with visiting(api, session_of()) as visitor:
        answers = [await visitor.get(taken), await visitor.get(taken.replace(TAKEN, NOBODYS))]
    assert [answer.status_code for answer in answers] == [404, 404]
    assert inner(answers[0].text, TAKEN) == inner(answers[1].text, NOBODYS)
    assert LOOT not in answers[0].text
    assert all(confined(statement) for statement in api.reader.asked)


@pytest.mark.parametrize("path", LISTS)
async def test_no_page_shows_another_customers_rows_whatever_it_is_asked(path: str) -> None:
    api = robbed()
    async with visiting(api, session_of()) as visitor:
        answer = await visitor.get(f"{path}?customer={VICTIM}&robot_id=arm-2&tier=full")
    assert answer.status_code in (200, 404)
    assert LOOT not in answer.text
    assert all(confined(statement) for statement in api.reader.asked)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("path", LISTS)
async def test_no_parameter_of_a_page_becomes_markup_or_a_header(path: str, payload: str) -> None:
    async with visiting(robbed(), session_of()) as visitor:
        # In two parts: clients refuse to send an address of all of them at their longest.
        for names in (
            ("customer", "robot_id", "episode_id", "status", "code", "cursor", "window", "live", "done", "target"),
            ("customer", "q", "robot_type", "step", "outcome"),
            ("like", "robot_type", "topic", "reason", "place"),
        ):
            answer = await visitor.client.get(path, params=dict.fromkeys(names, payload))
            assert answer.status_code in (200, 400, 404)
            assert "<script>alert" not in answer.text
            assert "set-cookie" not in answer.headers
        login = await visitor.client.get("/console/login", params={"next": payload, "ended": payload})
        assert 'name="next" value="/console"' in login.text


@pytest.mark.parametrize(
    "forged",
    [
        Tokens("x" * 32, audience=AUDIENCE).issue("k-1", CUSTOMER, (Scope.READ,), 60)[0],
        Tokens(SECRET, audience="another").issue("k-1", CUSTOMER, (Scope.READ,), 60)[0],
        Tokens(SECRET, lambda: 1000.0, audience=AUDIENCE).issue("k-1", CUSTOMER, (Scope.READ,), 60)[0],
        Tokens(SECRET, audience=AUDIENCE).issue("k-nobodys", CUSTOMER, (Scope.READ,), 60)[0],
        "eyJhbGciOiJub25lIn0.e30.", "A" * 5000, "a.b.c",
    ],
    ids=["another secret", "another audience", "expired", "no such key", "no algorithm", "long", "nonsense"],
)  # fmt: skip
async def test_a_forged_cookie_opens_no_page(forged: str) -> None:
    async with visiting(robbed(), forged) as visitor:
        for _, path, _ in PAGES[:3]:
            assert (await visitor.get(path)).status_code == 303


async def test_a_cookie_sees_no_more_than_its_key_may_now() -> None:
    api = console_api(table=DictKeys(key_record(scopes=(Scope.CONTROL,))))
    async with visiting(api, session_of(tuple(Scope))) as visitor:
        assert (await visitor.get("/console")).status_code == 403
        assert (await visitor.get("/console/control")).status_code == 200


async def test_the_customer_of_a_session_is_its_keys() -> None:
    api = robbed()
    async with visiting(api, session_of(customer_id=VICTIM)) as visitor:
        assert (await visitor.get("/console/requests")).status_code == 200
    assert all(confined(statement) for statement in api.reader.asked)


async def test_a_page_of_another_site_stops_and_resumes_nothing() -> None:
    api = console_api()
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console/control")
        fields = {"action": "stop", "scope": "fleet", "reason": "csrf"}
        for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}, {"origin": "null"}):
            sent = await visitor.client.post("/console/control", data={**fields, "csrf": visitor.csrf}, headers=headers)
            assert sent.status_code == 403
        sent = await visitor.client.post("/console/control", data=fields, headers={"origin": ORIGIN})
        assert sent.status_code == 403
    assert not any(api.broker.records(topic) for topic in (CONTROL, CONSENT))


async def test_a_stop_by_form_of_anothers_robot_stops_ones_own_name_alone() -> None:
    api = console_api()
    async with visiting(api, session_of(DEFAULT_SCOPES)) as visitor:
        await visitor.get("/console/control")
        for robot in (f"../{VICTIM}/arm-2", f"{VICTIM}/arm-2", "arm-2"):
            fields = {"action": "stop", "scope": "robot", "robot_id": robot, "reason": "mine now"}
            await visitor.send(f"/console/control?customer={VICTIM}", {**fields, "customer": VICTIM})
    (record,) = api.broker.records(CONTROL)
    assert CUSTOMER in str(record.key)
    assert VICTIM not in str(record.key) + str(record.value)


@pytest.mark.parametrize(("method", "path"), OPERATORS)
async def test_what_operators_see_and_do_is_closed_to_customers(method: str, path: str) -> None:
    api = console_api(letters=HeldLetters(letter(offset=1)))
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console")
        opened = re.sub(r"\{\w+\}", "0", path)
        if method == "GET":
            answer = await visitor.get(f"{opened}?place=vla.requests.v1.dlq/0/1")
        else:
            answer = await visitor.send(opened, {"places": "vla.requests.v1.dlq/0/1"})
    assert answer.status_code == 403
    assert "vla.requests.v1.dlq/0/1" not in answer.text
    assert api.letters.sent == []


@pytest.mark.parametrize("action", ["rotate", "revoke"])
async def test_a_form_with_anothers_key_is_answered_as_one_with_a_key_that_nobody_has(action: str) -> None:
    async with visiting(robbed(), session_of()) as visitor:
        answers = []
        for key_id in (TAKEN, NOBODYS):
            await visitor.get("/console/keys")
            answers.append(await visitor.send(f"/console/keys/{key_id}/{action}", {"grace_s": "0"}))
    assert [answer.status_code for answer in answers] == [404, 404]
    assert inner(answers[0].text, TAKEN) == inner(answers[1].text, NOBODYS)


async def test_a_page_of_another_site_makes_no_key_and_erases_nothing() -> None:
    api = console_api(database=TenantDatabase())
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console/consent")
        for path in ("/console/keys", "/console/consent", "/console/consent/erase"):
            fields = {"csrf": visitor.csrf, "scope.read": "on", "days": "", "tier": "none", "word": "erase"}
            for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "same-site"}):
                assert (await visitor.client.post(path, data=fields, headers=headers)).status_code == 403
    assert api.broker.records(CONSENT) == []
