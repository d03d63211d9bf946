"""Keys, consent and customers in the console: who may, what is asked before, what is kept of it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import Connection, create_engine

from ingest_api.key_stores import LIMIT_COLUMNS
from runtime.database import Database
from schemas.messages import Consent
from schemas.scopes import DEFAULT_SCOPES, Scope
from schemas.topics import CONSENT
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, DictKeys, key_record
from tests.unit.console_case import Visitor, console_api, session_of, visiting
from tests.unit.test_console_pages import HOSTILE

OPERATOR = tuple(Scope)
KEY_ID = "00000000-0000-4000-8000-00000000000a"


async def text_at(visitor: Visitor, path: str, status: int = 200) -> str:
    answer = await visitor.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


# --- keys


class KeyRows(Database):
    """A Postgres with one active key of the customer's, and what was written into it."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(create_engine("postgresql+psycopg://"))
        self.held = SimpleNamespace(**{
            "id": uuid.UUID(KEY_ID), "customer_id": CUSTOMER, "prefix": "vla_abcdefgh", "key_hash": "h",
            "name": HOSTILE, "scopes": list(DEFAULT_SCOPES), "rate_limit": None, "is_active": True, "expires_at": None,
            "last_used_at": None, "created_at": datetime(2026, 1, 31, tzinfo=UTC), **changes,
        })  # fmt: skip
        self.written: list[str] = []

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        yield cast(Connection, self)

    def execute(self, statement: Any) -> Any:
        text = str(statement)
        if not text.startswith("SELECT"):
            self.written.append(text.partition(" SET ")[0].partition(" (")[0])
        return SimpleNamespace(all=lambda: [self.held], one=lambda: self.held, scalar_one=lambda: 1)


def with_keys(**changes: Any) -> tuple[Api, KeyRows]:
    rows = KeyRows(**changes)
    return console_api(database=rows), rows


async def test_keys_are_listed_with_a_hostile_name_as_text() -> None:
    api, _ = with_keys()
    async with visiting(api, session_of()) as visitor:
        text = await text_at(visitor, "/console/keys")
        assert "vla_abcdefgh" in text
        assert "<script>alert" not in text


async def test_a_new_key_is_shown_once_and_kept_by_no_cache() -> None:
    api, rows = with_keys(name="line 3")
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console/keys")
        fields = {"name": "line 3", "scope.read": "on", "days": "30", "rate_limit": "60"}
        answer = await visitor.send("/console/keys", fields)
        assert answer.status_code == 201
        assert 'id="made" value="vla_' in answer.text
        assert "no-store" in answer.headers["cache-control"]
        assert 'id="made"' not in await text_at(visitor, "/console/keys")
    assert any("api_keys" in text for text in rows.written)


@pytest.mark.parametrize(("fields", "part"), [
    ({"days": "30"}, "a key without a scope opens nothing"),
    ({"days": "31", "scope.read": "on"}, "choose when the key ends"),
    ({"days": "", "scope.read": "on", "rate_limit": "-5"}, "whole number"),
    ({"days": "", "scope.admin": "on"}, "your own key lacks the scope admin"),
    ({"days": "", "scope.read": "on", "name": "a\nb"}, "printable characters"),
])  # fmt: skip
async def test_a_key_that_cannot_be_is_not_made(fields: dict[str, str], part: str) -> None:
    api, rows = with_keys()
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console/keys")
        answer = await visitor.send("/console/keys", fields)
        assert answer.status_code in (400, 403, 422)
        assert part in answer.text.lower()
    assert rows.written == []


async def test_revoking_asks_first_and_says_when_it_is_ones_own() -> None:
    api, rows = with_keys()
    api.table.add(key_record(key_id=KEY_ID))
    async with visiting(api, session_of(key_id=KEY_ID)) as visitor:
        text = await text_at(visitor, f"/console/keys/{KEY_ID}/revoke")
        assert "You are logged in with this very key" in text
        assert rows.written == []
        answer = await visitor.send(f"/console/keys/{KEY_ID}/revoke", {})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/keys?done=revoked")
    assert any("api_keys" in text for text in rows.written)


async def test_rotating_shows_the_new_key_once() -> None:
    api, _ = with_keys()
    async with visiting(api, session_of()) as visitor:
        await text_at(visitor, f"/console/keys/{KEY_ID}/rotate")
        answer = await visitor.send(f"/console/keys/{KEY_ID}/rotate", {"grace_s": "3600"})
        assert answer.status_code == 201
        assert 'id="made" value="vla_' in answer.text
        await text_at(visitor, f"/console/keys/{KEY_ID}/rotate")
        assert (await visitor.send(f"/console/keys/{KEY_ID}/rotate", {"grace_s": "7"})).status_code == 400


@pytest.mark.parametrize(
    ("page", "path", "fields"),
    [
        ("/console/keys", "/console/keys", {"scope.read": "on", "days": "30"}),
        (f"/console/keys/{KEY_ID}/rotate", f"/console/keys/{KEY_ID}/rotate", {"grace_s": "3600"}),
    ],
    ids=["create", "rotate"],
)
async def test_a_form_that_comes_again_makes_no_second_key(page: str, path: str, fields: dict[str, str]) -> None:
    api, rows = with_keys()
    async with visiting(api, session_of()) as visitor:
        await text_at(visitor, page)
        assert (await visitor.send(path, fields)).status_code == 201
        made = list(rows.written)
        again = await visitor.send(path, fields)
        assert (again.status_code, rows.written) == (409, made)
        assert "This form was sent already" in again.text
        assert "If you did not see it, revoke it" in again.text
        assert "vla_" not in again.text
        # The page, opened anew, has another copy of the form.
        await text_at(visitor, page)
        assert (await visitor.send(path, fields)).status_code == 201


async def test_a_form_that_was_refused_can_be_mended_and_sent() -> None:
    api, _ = with_keys()
    async with visiting(api, session_of()) as visitor:
        await text_at(visitor, "/console/keys")
        refused = await visitor.send("/console/keys", {"days": "30"})
        assert refused.status_code == 422
        visitor.read(refused)
        assert (await visitor.send("/console/keys", {"days": "30", "scope.read": "on"})).status_code == 201


@pytest.mark.parametrize("once", ["", "0" * 31, "0" * 33, "g" * 32])
async def test_a_form_without_its_number_makes_no_key(once: str) -> None:
    api, rows = with_keys()
    async with visiting(api, session_of()) as visitor:
        await text_at(visitor, "/console/keys")
        answer = await visitor.send("/console/keys", {"scope.read": "on", "days": "30", "once": once})
        assert (answer.status_code, rows.written) == (400, [])
        assert "open the page again" in answer.text


async def test_the_number_of_one_sessions_form_says_nothing_about_anothers() -> None:
    api, _ = with_keys()
    api.table.add(key_record(key_id="k-2"))
    fields = {"scope.read": "on", "days": "30", "once": "0" * 32}
    for key_id in ("k-1", "k-2"):
        async with visiting(api, session_of(key_id=key_id)) as visitor:
            await text_at(visitor, "/console/keys")
            assert (await visitor.send("/console/keys", fields)).status_code == 201


async def test_without_valkey_no_key_is_made_twice_by_accident() -> None:
    api, rows = with_keys()
    api.sent_forms.away = True
    async with visiting(api, session_of()) as visitor:
        await text_at(visitor, "/console/keys")
        fields = {"scope.read": "on", "days": "30"}
        answer = await visitor.send("/console/keys", fields)
        assert (answer.status_code, rows.written) == (503, [])
        assert "Valkey does not answer" in answer.text
        # Sent again once it is back, it is the first one.
        api.sent_forms.away = False
        assert (await visitor.send("/console/keys", fields)).status_code == 201


@pytest.mark.parametrize("action", ["rotate", "revoke"])
@pytest.mark.parametrize("held", [{}, {"is_active": False, "id": uuid.UUID(int=0, version=4)}])
async def test_a_key_that_is_none_of_ones_own_is_neither_rotated_nor_revoked(action: str, held: dict[str, Any]) -> None:
    api, rows = with_keys(**held)
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console/keys")
        path = f"/console/keys/{uuid.UUID(int=0, version=4)}/{action}"
        assert (await visitor.get(path)).status_code == 404
        assert (await visitor.send(path, {"grace_s": "0"})).status_code == 404
    assert rows.written == []


# --- consent


async def test_consent_is_shown_and_changed_after_a_look_at_the_change() -> None:
    api = console_api()
    async with visiting(api, session_of()) as visitor:
        assert "the installation" in await text_at(visitor, "/console/consent")
        end = (datetime.now(UTC) + timedelta(days=40)).date().isoformat()
        fields = {"tier": "full", "ends_on": end, "anonymization_level": "full"}
        answer = await visitor.client.get("/console/consent/change", params=fields)
        assert answer.status_code == 200
        assert "pixels too" in answer.text
        assert api.broker.records(CONSENT) == []
        api.consents.update(CUSTOMER.encode(), Consent(tier="none", version=1).SerializeToString(), 0)
        answer = await visitor.send("/console/consent", fields)
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/consent?done=changed")
    (record,) = api.broker.records(CONSENT)
    consent = Consent.FromString(record.value or b"")
    assert (consent.customer_id, consent.tier, consent.anonymization, consent.who) == (
        CUSTOMER,
        "full",
        "full",
        "key k-1",
    )
    assert datetime.fromtimestamp(consent.expires_at_ms / 1000, UTC).date().isoformat() == end


@pytest.mark.parametrize("fields", [
    {"tier": "everything"}, {}, {"tier": "full", "ends_on": "2020-01-01"}, {"tier": "full", "ends_on": "soon"},
    {"tier": "full", "anonymization_level": "some"},
])  # fmt: skip
async def test_a_consent_that_cannot_be_is_not_written(fields: dict[str, str]) -> None:
    api = console_api()
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console/consent")
        for answer in (
            await visitor.client.get("/console/consent/change", params=fields),
            await visitor.send("/console/consent", fields),
        ):
            assert answer.status_code == 400
            assert 'role="alert"' in answer.text
    assert api.broker.records(CONSENT) == []


async def test_an_erasure_takes_a_typed_word() -> None:
    api = console_api()
    async with visiting(api, session_of()) as visitor:
        assert "for good" in await text_at(visitor, "/console/consent/erase")
        assert (await visitor.send("/console/consent/erase", {"word": "yes"})).status_code == 400
        assert api.broker.records(CONSENT) == []
        answer = await visitor.send("/console/consent/erase", {"word": "Erase"})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/consent?done=erasing")
    (record,) = api.broker.records(CONSENT)
    consent = Consent.FromString(record.value or b"")
    assert (consent.customer_id, consent.erased_before_ms > 0) == (CUSTOMER, True)


async def test_consent_of_another_customer_is_out_of_reach() -> None:
    api = console_api()
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console/consent?customer=customer-2")
        await visitor.send("/console/consent?customer=customer-2", {"tier": "full", "customer_id": "customer-2"})
    (record,) = api.broker.records(CONSENT)
    assert record.key == CUSTOMER.encode()


async def test_without_postgres_the_consent_that_holds_is_still_shown() -> None:
    api = console_api()
    api.reader.away = True
    async with visiting(api, session_of()) as visitor:
        assert "Postgres does not answer" in await text_at(visitor, "/console/consent")


# --- customers


class CustomerRows(KeyRows):
    """A Postgres with one customer, whose address is hostile."""

    def __init__(self) -> None:
        super().__init__(id=CUSTOMER, email=HOSTILE, tier="pro", **dict.fromkeys(LIMIT_COLUMNS.values()))


async def test_an_operator_sees_customers_with_what_they_used() -> None:
    api = console_api(table=DictKeys(key_record(scopes=OPERATOR)), database=CustomerRows())
    api.reader.found = [{"customer_id": CUSTOMER, "requests": 1234, "successful": 1200, "robots": 3}]
    async with visiting(api, session_of(OPERATOR)) as visitor:
        text = await text_at(visitor, "/console/customers")
        for part in ("1,234", "1,200", f"/console?customer={CUSTOMER}"):
            assert part in text
        assert "<script>alert" not in text


async def test_customers_are_for_operators_alone() -> None:
    async with visiting(console_api(), session_of()) as visitor:
        await text_at(visitor, "/console/customers", 403)
