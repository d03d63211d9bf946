"""Two customers, one after what is the other's, and stores that give it to whoever does not ask whose it is."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import httpx
from pydantic import SecretStr
from sqlalchemy import Connection, Executable, create_engine
from sqlalchemy.dialects.postgresql.base import PGDialect

from ingest_api.key_watch import KeyWatch
from ingest_api.tokens import Tokens
from runtime.database import Database
from runtime.settings import Settings
from schemas.messages import AuditEvent
from schemas.scopes import Scope
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, KEY, DictKeys, ListedRows, key_record

VICTIM = "customer-2"
VICTIM_KEY = "vla_victim78_" + "t" * 43
#: Stands in every row of the other customer, and must stand in no answer.
LOOT = "loot-of-customer-2"
#: An id of the other customer's, and one that nobody has.
TAKEN = "6f1c0a3e-5d1b-4c5e-9f59-0f3a1f8f2a10"
NOBODYS = "00000000-0000-4000-8000-000000000000"
JWT_SECRET = "j" * 32
DIALECT = PGDialect()  # type: ignore[no-untyped-call] # SQLAlchemy has no types for it

#: What people put where a name belongs. None of it may become a statement, a path, a header or a line of its own.
PAYLOADS = (
    "' OR '1'='1", "x'; DROP TABLE inference_log;--", "x' UNION SELECT key_hash FROM api_keys--",
    "%(nobodys_parameter)s", "{{7*7}}", "../../../../etc/passwd", "file:///etc/passwd", "http://169.254.169.254/latest",
    "a\r\nset-cookie: x=1", "a\x00b", "a\u2028b", "<script>alert(1)</script>", "A" * 5000,
)  # fmt: skip


#: Where a server must not be sent to fetch something: itself, its neighbours, its cloud's secrets, another's bucket.
ADDRESSES = (
    "file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "http://metadata.google.internal/",
    "http://127.0.0.1:9092/", "http://localhost/", "http://[::1]/", "http://0x7f000001/", "//127.0.0.1/x",
    "s3://another-bucket/x", "gopher://127.0.0.1:6379/_FLUSHALL",
    "https://example.org/redirect?to=http%3A%2F%2F169.254.169.254%2F",
)  # fmt: skip


class TenantRows(ListedRows):
    """The rows of the other customer, for every statement that does not confine itself to who asks."""

    def rows(self, statement: Executable, settings: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        self.asked.append(statement)
        return [] if confined(statement) else [{"id": TAKEN, "leak": LOOT, "similarity": 1.0}]


def confined(statement: Executable) -> bool:
    """Whether a statement's conditions hold for rows of CUSTOMER alone."""
    compiled = cast(Any, statement).compile(dialect=DIALECT)
    _, _, conditions = str(compiled).partition("WHERE")
    bound = re.findall(r"(?:customer_id =|customers @>) %\((\w+)\)s", conditions)
    # An OR would let in what the condition on the customer keeps out.
    return any(compiled.params[name] in (CUSTOMER, [CUSTOMER]) for name in bound) and " OR customer" not in conditions


def text_of(statement: Executable) -> str:
    """The SQL alone, as it goes to the server beside its parameters."""
    return str(cast(Any, statement).compile(dialect=DIALECT))


class _Nothing:
    def all(self) -> list[Any]:
        return []


class _Asked:
    def __init__(self, statements: list[Executable]) -> None:
        self._statements = statements

    def execute(self, statement: Executable) -> _Nothing:
        assert confined(statement), f"reaches other customers: {text_of(statement)}"
        self._statements.append(statement)
        return _Nothing()


class TenantDatabase(Database):
    """A Postgres in which the caller has nothing, and that no statement may ask beyond the caller."""

    def __init__(self) -> None:
        super().__init__(create_engine("postgresql+psycopg://"))
        self.asked: list[Executable] = []

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        yield cast(Connection, _Asked(self.asked))


def settings_with(**changes: Any) -> Settings:
    return Settings(_env_file=None, database_url=SecretStr("postgresql://x"), shutdown_timeout_s=2, **changes)


def two_customers(**parts: Any) -> Api:
    """An API whose victim has an inference, keys, rows and sessions; KEY is the burglar's."""
    table = DictKeys(key_record(), key_record(VICTIM_KEY, customer_id=VICTIM, key_id="k-2"))
    api = Api(**{"table": table, "reader": TenantRows(), "database": TenantDatabase(), **parts})
    api.history.rows[VICTIM, TAKEN] = [{"request_id": TAKEN, "status": LOOT}]
    return api


@functools.cache
def _standing() -> Api:
    return two_customers()


def standing() -> Api:
    """One API for all attempts that must leave nothing behind in it."""
    api = _standing()
    for heard in (api.gateway.asked, api.gateway.requests, api.gateway.futures, api.gateway.settle, api.reader.asked):
        heard.clear()
    return api


def watched(api: Api) -> list[AuditEvent]:
    """What is told of suspicious keys from now on."""
    told: list[AuditEvent] = []
    api.keys._watch = KeyWatch(told.append)  # noqa: SLF001 - the ring of an API that stands already
    return told


def scoped(api: Api, *scopes: Scope) -> str:
    """Another key of the burglar's, with these scopes alone."""
    key = f"vla_abcdefgh_{len(api.table.records):043d}"
    api.table.add(key_record(key, key_id=f"only-{'-'.join(scopes)}", scopes=scopes))
    return key


def token_for(scopes: tuple[Scope, ...], secret: str = JWT_SECRET, key_id: str = "k-1") -> str:
    return Tokens(secret).issue(key_id, CUSTOMER, scopes, 60)[0]


async def send(api: Api, method: str, path: str, json: Any = None, key: str | None = KEY, **how: Any) -> httpx.Response:
    async with api.client(key) as client:
        return await client.request(method, path, json=json, **how)


def alike(one: httpx.Response, other: httpx.Response) -> None:
    """Two refusals that differ in nothing but their own number and the id that was asked for."""
    assert one.status_code == other.status_code
    plain = [
        re.sub(r'"request_id":"[^"]*"', "", answer.text).replace(TAKEN, "ID").replace(NOBODYS, "ID")
        for answer in (one, other)
    ]
    plain = [text.replace(VICTIM, "WHO").replace("customer-0", "WHO") for text in plain]
    assert plain[0] == plain[1]
