"""A browser that is none: a client of the console that keeps cookies and sends forms as browsers do."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from pydantic import SecretStr

from ingest_api.access import declared_scopes
from ingest_api.console.session import AUDIENCE, COOKIE
from ingest_api.tokens import Tokens
from runtime.settings import Settings
from schemas.scopes import DEFAULT_SCOPES, Scope
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, KEY

SECRET = "j" * 32
#: With dots: a name without them is another one to cookie jars.
HOST = "api.example.org"
ORIGIN = f"http://{HOST}"
_CSRF = re.compile(r'name="csrf" value="([0-9a-f]{64})"')
_ONCE = re.compile(r'name="once" value="([0-9a-f]{32})"')


def console_settings(**changes: Any) -> Settings:
    fields: dict[str, Any] = {"database_url": SecretStr("postgresql://x"), "jwt_secret_key": SecretStr(SECRET)}
    return Settings(_env_file=None, **{**fields, **changes})


def console_api(**parts: Any) -> Api:
    return Api(**{"settings": console_settings(), **parts})


def pages_of(api: Api) -> list[tuple[str, str, Scope]]:
    """Method, path and scope of every page and form that takes a session."""
    found = []
    for router in api.app.routes:
        for route in getattr(getattr(router, "original_router", None), "routes", ()):
            declared = declared_scopes(getattr(route, "openapi_extra", None))
            path = getattr(route, "path", "")
            if path.startswith("/console") and declared:
                found += [(method, path, Scope(declared[0])) for method in sorted(route.methods)]
    return found


def opened(path: str) -> str:
    """A page's path with an id of nothing in place of its parameters."""
    return re.sub(r"\{\w+\}", "00000000-0000-4000-8000-000000000000", path)


@functools.cache
def standing() -> Api:
    """One API for all visits that leave nothing behind in it."""
    return console_api()


def session_of(
    scopes: tuple[Scope, ...] = DEFAULT_SCOPES, *, key_id: str = "k-1", customer_id: str = CUSTOMER, ttl_s: int = 600
) -> str:
    """A cookie as the login gives it, for a key with these scopes."""
    return Tokens(SECRET, audience=AUDIENCE, scopes=tuple(Scope)).issue(key_id, customer_id, scopes, ttl_s)[0]


class Visitor:
    """One browser. `csrf` and `once` are those of the page opened last that has them."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client
        self.csrf = ""
        self.once = ""

    async def get(self, path: str, **headers: str) -> httpx.Response:
        answer = await self.client.get(path, headers=headers)
        self.read(answer)
        return answer

    def read(self, page: httpx.Response) -> None:
        """Take this page for the one that is open."""
        found = _CSRF.search(page.text)
        self.csrf = found[1] if found else self.csrf
        found = _ONCE.search(page.text)
        self.once = found[1] if found else self.once

    async def live(self, path: str, **headers: str) -> httpx.Response:
        """As htmx renews a part."""
        return await self.get(path, **{"hx-request": "true", **headers})

    async def send(self, path: str, fields: dict[str, str], **headers: str) -> httpx.Response:
        """A form of the page opened last."""
        sent = {"origin": ORIGIN, "sec-fetch-site": "same-origin", **headers}
        return await self.client.post(path, data={"csrf": self.csrf, "once": self.once, **fields}, headers=sent)

    async def log_in(self, key: str = KEY, **fields: str) -> httpx.Response:
        return await self.send("/console/login", {"key": key, **fields})


@asynccontextmanager
async def visiting(api: Api, session: str | None = None) -> AsyncIterator[Visitor]:
    """session: a cookie that is there already."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url=ORIGIN) as client:
        if session is not None:
            client.cookies.set(COOKIE, session, domain=HOST, path="/console")
        yield Visitor(client)
