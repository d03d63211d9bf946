"""What every HTTP answer carries and every request must have, before any route sees it. Pure ASGI."""

from __future__ import annotations

import asyncio
import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest_api.problems import Problem
from schemas.codes import Code

#: Nothing that this API answers is a page, nor part of one.
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}
#: The interactive documentation is a page, which takes its script from where FastAPI says.
_DOCS = re.compile(r"/docs(/|$)")
#: Asked by whoever runs the process, under its address.
_PROBES = frozenset({"/livez", "/readyz"})
#: Headers that decide who is meant and who asks.
_ONCE = ("host", "authorization")
_ONE_YEAR_S = 365 * 24 * 3600
#: RFC 6455, 7.4.1: policy violation.
_POLICY_VIOLATION = 1008


class SecurityHeaders:
    """Adds what tells browsers to be strict. https_only: also that this host is to be called by TLS alone."""

    def __init__(self, app: ASGIApp, *, https_only: bool) -> None:
        self._app = app
        self._https_only = https_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    if name != "content-security-policy" or not _DOCS.match(scope["path"]):
                        headers.setdefault(name, value)
                if scope["path"].startswith("/v1/"):
                    headers.setdefault("cache-control", "no-store")
                if self._https_only:
                    headers.setdefault("strict-transport-security", f"max-age={_ONE_YEAR_S}")
            await send(message)

        await self._app(scope, receive, dressed)


class KnownHosts:
    """Refuses what was not meant for this API: a name that a page on somebody else's site resolved to it.

    And what has two names or two keys, of which a proxy before us may have gone by the other one (RFC 9112, 3.2).
    """

    def __init__(self, app: ASGIApp, *, hosts: tuple[str, ...]) -> None:
        self._app = app
        self._any = "*" in hosts
        self._exact = frozenset(host.lower() for host in hosts)
        self._endings = tuple(host[1:].lower() for host in hosts if host.startswith("*."))

    def _known(self, host: str) -> bool:
        name = re.sub(r":\d+$", "", host.strip().lower()).strip("[]")
        return name in self._exact or (bool(self._endings) and name.endswith(self._endings))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] in ("http", "websocket") and scope["path"] not in _PROBES
        detail = self._fault(Headers(scope=scope)) if asked else ""
        if not detail:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})
        else:
            await Problem(Code.MALFORMED, detail).response()(scope, receive, send)

    def _fault(self, headers: Headers) -> str:
        for name in _ONCE:
            if len(headers.getlist(name)) > 1:
                return f"the header {name} came more than once: send it once"
        if self._any or self._known(headers.get("host", "")):
            return ""
        return "this API does not go by the name in the Host header: see ALLOWED_HOSTS"


class HeadAsGet:
    """Answers HEAD wherever GET is served, as RFC 9110, 9.3.2 has it: load balancers and monitors ask that way."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self._app({**scope, "method": "GET"}, receive, bodiless)


class PlainBodies:
    """Refuses compressed bodies, which may have any size once unpacked: 415, RFC 9110 section 15.5.16."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encodings = Headers(scope=scope).getlist("content-encoding") if scope["type"] == "http" else []
        if all(encoding.strip().lower() in ("", "identity") for encoding in encodings):
            await self._app(scope, receive, send)
            return
        detail = "send the body as it is, without Content-Encoding: images in it are compressed already"
        # The body is not read, so the connection cannot be used again.
        refusal = Problem(
            Code.MALFORMED, detail, status=415, headers={"accept-encoding": "identity", "connection": "close"}
        )
        await refusal.response()(scope, receive, send)


class PromptBodies:
    """Ends a request whose body does not come: otherwise its place would be held for as long as its client likes.

    timeout_s: for the whole body, from its first byte's wait to its last.
    """

    def __init__(self, app: ASGIApp, *, timeout_s: float) -> None:
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        loop = asyncio.get_running_loop()
        end_s: float | None = None
        complete = False

        async def prompt() -> Message:
            nonlocal end_s, complete
            if complete:
                # From here on it is only heard whether the client has left.
                return await receive()
            if end_s is None:
                end_s = loop.time() + self._timeout_s
            try:
                async with asyncio.timeout_at(end_s):
                    message = await receive()
            except TimeoutError as error:
                detail = f"the body did not come within {self._timeout_s:g} s: send it in one go"
                raise Problem(Code.SLOW_CLIENT, detail, headers={"connection": "close"}) from error
            complete = message["type"] != "http.request" or not message.get("more_body", False)
            return message

        await self._app(scope, prompt, send)
