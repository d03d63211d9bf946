"""The console's frame: login, cookies, forms of strangers, scopes, security headers, vendored files."""

from __future__ import annotations

import hashlib
import re

import httpx
import pytest
from fastapi import Request, Response

from ingest_api.console.assets import STATIC
from ingest_api.console.session import COOKIE, Doorkeeper, own_page
from ingest_api.tokens import Tokens
from schemas.messages import AuditEvent
from schemas.scopes import DEFAULT_SCOPES, TOKEN_SCOPES, Scope
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import CUSTOMER, KEY, key_record
from tests.unit.break_in_case import watched
from tests.unit.console_case import HOST, ORIGIN, SECRET, console_api, opened, pages_of, session_of, standing, visiting

PAGES = pages_of(standing())
#: Forms: what a page of somebody else would like to send.
FORMS = sorted({"/console/login", "/console/logout", *(path for method, path, _ in PAGES if method == "POST")})


# --- login


async def test_a_key_becomes_a_cookie_that_no_script_and_no_other_site_gets() -> None:
    async with visiting(standing()) as visitor:
        answer = await visitor.log_in(next="/console?window=900")
        assert (answer.status_code, answer.headers["location"]) == (303, "/console?window=900")
        cookie = answer.headers["set-cookie"]
        for part in ("HttpOnly", "SameSite=strict", "Path=/console", "Max-Age=3600"):
            assert part in cookie
        assert KEY not in cookie
        assert (await visitor.get("/console")).status_code == 200


@pytest.mark.parametrize(("base", "secure"), [("http://api", False), ("https://api", True)])
async def test_the_cookie_goes_by_tls_alone_where_it_came_by_tls(base: str, secure: bool) -> None:
    api = standing()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(api.app), base_url=base) as client:
        answer = await client.post("/console/login", data={"key": KEY}, headers={"origin": base})
        assert ("Secure" in answer.headers["set-cookie"]) is secure


async def test_in_production_the_cookie_goes_by_tls_alone() -> None:
    # A proxy before the API ends TLS, so the API itself always hears HTTP.
    doorkeeper, response = Doorkeeper(standing().keys, SECRET, https_only=True), Response()
    request = Request({"type": "http", "scheme": "http", "path": "/", "headers": [], "server": ("api", 80)})
    await doorkeeper.log_in(request, KEY, response)
    assert "Secure" in response.headers["set-cookie"]


@pytest.mark.parametrize("key", ["", "wrong", "vla_nobodys1_" + "x" * 43, "vla_abcdefgh_" + "s" * 42])
async def test_what_is_no_key_opens_no_console(key: str) -> None:
    async with visiting(standing()) as visitor:
        answer = await visitor.log_in(key)
        assert answer.status_code == 401
        assert "set-cookie" not in answer.headers
        assert 'role="alert"' in answer.text


async def test_guessing_at_the_login_is_told_as_guessing_at_the_api_is() -> None:
    api = console_api()
    told: list[AuditEvent] = watched(api)
    async with visiting(api) as visitor:
        for number in range(12):
            await visitor.log_in(f"vla_abcdefgh_{number:043d}")
    assert [event.action for event in told] == ["key.guessing"]


async def test_a_token_of_the_api_is_no_session_and_a_session_is_no_token_of_the_api() -> None:
    api = standing()
    async with visiting(api, Tokens(SECRET).issue("k-1", CUSTOMER, TOKEN_SCOPES, 60)[0]) as visitor:
        assert (await visitor.get("/console")).status_code == 303
    async with api.client(session_of()) as client:
        assert (await client.get("/v1/inferences")).status_code == 401


async def test_a_session_that_ended_leads_to_the_login_and_back() -> None:
    async with visiting(standing(), session_of(ttl_s=1)) as visitor:
        visitor.client.cookies.set(COOKIE, "of.some.time-ago", domain=HOST, path="/console")
        answer = await visitor.get("/console?window=900")
        assert answer.status_code == 303
        assert answer.headers["location"] == "/console/login?next=%2Fconsole%3Fwindow%3D900&ended=1"
        login = await visitor.get(answer.headers["location"])
        assert "Your session ended" in login.text
        assert 'name="next" value="/console?window=900"' in login.text


async def test_a_live_part_whose_session_ended_sends_the_whole_page_to_the_login() -> None:
    async with visiting(standing(), "ended") as visitor:
        answer = await visitor.live("/console", **{"hx-current-url": f"{ORIGIN}/console?window=900"})
        assert answer.status_code == 401
        assert answer.headers["hx-redirect"] == "/console/login?next=%2Fconsole%3Fwindow%3D900&ended=1"


async def test_a_session_ends_with_its_key() -> None:
    api = console_api()
    api.table.add(key_record(is_active=False))
    async with visiting(api, session_of()) as visitor:
        assert (await visitor.get("/console")).status_code == 303


async def test_logging_out_takes_the_cookie_away() -> None:
    async with visiting(standing()) as visitor:
        await visitor.log_in()
        await visitor.get("/console")
        answer = await visitor.send("/console/logout", {})
        assert (answer.status_code, answer.headers["location"]) == (303, "/console/login")
        assert (await visitor.get("/console")).status_code == 303


async def test_without_a_secret_the_login_says_what_is_missing() -> None:
    async with visiting(Api()) as visitor:
        answer = await visitor.log_in()
        assert answer.status_code == 503
        assert "JWT_SECRET_KEY" in answer.text


@pytest.mark.parametrize("path", [
    "https://evil.example", "//evil.example", "/v1/inferences", "/console/../v1", "/console/\\evil", "/consoles",
    "/console\r\nset-cookie: a=b", "javascript:alert(1)", "",
])  # fmt: skip
def test_after_the_login_nobody_is_sent_elsewhere(path: str) -> None:
    assert own_page(path) == "/console"


# --- forms


STRANGERS = [
    {"origin": "https://evil.example"},
    {"origin": "null"},
    {"origin": "http://["},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "none"},
    {"origin": "https://evil.example", "sec-fetch-site": "same-origin"},
    {},
]


@pytest.mark.parametrize("headers", STRANGERS)
@pytest.mark.parametrize(
    "path", sorted({"/console/login", "/console/logout", *(p for m, p, _ in PAGES if m == "POST")})
)
async def test_a_form_of_another_page_does_nothing(path: str, headers: dict[str, str]) -> None:
    api = console_api()
    async with visiting(api, session_of()) as visitor:
        await visitor.get("/console")
        answer = await visitor.client.post(opened(path), data={"csrf": visitor.csrf, "key": KEY}, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers
    assert not any(api.broker.records(topic) for topic in ("vla.control.v1", "vla.consent.v1"))


@pytest.mark.parametrize("csrf", ["", "0" * 64, "é"])
@pytest.mark.parametrize("path", [path for path in FORMS if path != "/console/login"])
async def test_a_form_without_the_sessions_own_token_does_nothing(path: str, csrf: str) -> None:
    async with visiting(standing(), session_of()) as visitor:
        visitor.csrf = csrf
        assert (await visitor.send(opened(path), {})).status_code == 403


async def test_the_token_of_one_sessions_forms_is_of_no_use_in_another() -> None:
    api = standing()
    async with visiting(api, session_of()) as one, visiting(api, session_of((Scope.READ,))) as other:
        await one.get("/console")
        other.csrf = one.csrf
        assert (await other.send("/console/logout", {})).status_code == 403


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"{}", "application/json"), (b"csrf=a&csrf=b", None), (b"a=%00", None), (b"a=%ff", None), (b"x&y" * 40, None)],
)
async def test_what_is_no_form_is_refused(content: bytes, kind: str | None) -> None:
    async with visiting(standing(), session_of()) as visitor:
        headers = {"origin": ORIGIN, "content-type": kind or "application/x-www-form-urlencoded"}
        answer = await visitor.client.post("/console/login", content=content, headers=headers)
        assert answer.status_code == 400
        assert "<h1>" in answer.text


# --- pages


@pytest.mark.parametrize(("method", "path", "scope"), PAGES)
async def test_a_page_takes_its_scope(method: str, path: str, scope: Scope) -> None:
    others = tuple(other for other in Scope if other not in (scope, Scope.ADMIN))
    async with visiting(standing(), session_of(others)) as visitor:
        await visitor.get("/console/login")
        answer = await visitor.client.request(method, opened(path), headers={"origin": ORIGIN})
        assert answer.status_code == 403
        assert f"the scope {scope}" in answer.text


@pytest.mark.parametrize(("method", "path", "scope"), PAGES)
async def test_no_page_opens_without_a_session(method: str, path: str, scope: Scope) -> None:
    async with visiting(standing()) as visitor:
        answer = await visitor.client.request(method, opened(path), headers={"origin": ORIGIN})
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/console/login?next=")


async def test_every_answer_of_the_console_forbids_inline_scripts_and_foreign_files() -> None:
    async with visiting(standing()) as visitor:
        answers = [await visitor.get("/console/login"), await visitor.log_in("wrong"), await visitor.get("/console")]
        await visitor.log_in()
        answers += [await visitor.get("/console"), await visitor.live("/console")]
        for answer in answers:
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert answer.headers["cache-control"] == "private, no-store"
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert not re.search(r"<script(?![^>]*src=)|style=|\son\w+=", answer.text)


async def test_a_section_that_the_key_may_not_open_is_not_offered() -> None:
    async with visiting(standing(), session_of((Scope.READ,))) as visitor:
        text = (await visitor.get("/console")).text
        assert ">Fleet</a>" in text
    async with visiting(standing(), session_of((Scope.CONTROL,))) as visitor:
        assert ">Fleet</a>" not in (await visitor.get("/console")).text


@pytest.mark.parametrize("path", ["console.css", "console.js", "icon.svg", "vendor/htmx.min.js"])
async def test_the_pages_files_are_served_and_asked_for_anew(path: str) -> None:
    async with visiting(standing()) as visitor:
        answer = await visitor.get(f"/console/static/{path}")
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("path", ["../session.py", "%2e%2e/session.py", "..%2fsession.py", "vendor/../../routes.py"])
async def test_no_other_file_is_served(path: str) -> None:
    async with visiting(standing()) as visitor:
        assert (await visitor.get(f"/console/static/{path}")).status_code == 404


def test_vendored_files_are_those_that_the_readme_names() -> None:
    vendor = STATIC / "vendor"
    named = dict(re.findall(r"^\| `([\w.]+)` .*?`([0-9a-f]{64})`", (vendor / "README.md").read_text(), re.MULTILINE))
    assert set(named) == {path.name for path in vendor.glob("*.js")}
    for name, digest in named.items():
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest


def test_a_visitor_has_what_most_keys_may() -> None:
    assert set(DEFAULT_SCOPES) >= {scope for _, _, scope in PAGES} - {Scope.ADMIN}
