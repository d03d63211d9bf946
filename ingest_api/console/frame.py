"""What all pages share: the guard before them, the base template around them, refusals as pages, security headers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment, PackageLoader, StrictUndefined

from ingest_api import openapi
from ingest_api.console.formats import FILTERS
from ingest_api.console.sections import SECTIONS, Section
from ingest_api.console.sent_forms import SentForms, comes_first, new_number
from ingest_api.console.session import ROOT, Doorkeeper, SessionEnded, Viewer, check_form, read_form
from ingest_api.problems import Problem, problem_of
from runtime.errors import VlastreamError
from schemas.codes import Code
from schemas.scopes import Scope

log = logging.getLogger(__name__)

LOGIN = f"{ROOT}/login"
#: Of every page: nothing but our own files is loaded, nothing inline runs, nobody frames us.
PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    # With no-referrer browsers send forms with `Origin: null`, which says nothing.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "private, no-store",
    "vary": "cookie, hx-request",
}

Show = Callable[[Request, Viewer], Awaitable[Response]]
Act = Callable[[Request, Viewer, dict[str, str]], Awaitable[Response]]


class Frame:
    """Pages are made with `shows` and `acts`, answered with `respond`."""

    def __init__(
        self,
        router: APIRouter,
        doorkeeper: Doorkeeper,
        sent_forms: SentForms,
        sections: Sequence[Section] = SECTIONS,
    ) -> None:
        self._router = router
        self.doorkeeper = doorkeeper
        self._sent_forms = sent_forms
        self._sections = sections
        self._templates = Environment(
            loader=PackageLoader("ingest_api.console"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters.update(FILTERS)

    def shows(self, path: str, show: Show, scope: Scope) -> None:
        """A page at GET path, for whoever has the scope."""

        async def guarded(request: Request) -> Response:
            viewer: Viewer | None = None
            try:
                viewer = await self.doorkeeper.viewer(request)
                viewer.require(scope)
                return await show(request, viewer)
            except VlastreamError as error:
                return self._refusal(request, viewer, error)

        self._add(path, guarded, "GET", scope)

    def acts(self, path: str, act: Act, scope: Scope, *, look_at: str = "") -> None:
        """A form that is sent to POST path: from a page of ours, of this session, by whoever has the scope.

        look_at: of a form whose every copy acts once (it has `once` beside `csrf`): the page that shows what became of
        it. The others are answered with `see_other`, or do the same twice without harm.
        """

        async def guarded(request: Request) -> Response:
            viewer: Viewer | None = None
            try:
                viewer = await self.doorkeeper.viewer(request)
                viewer.require(scope)
                form = await read_form(request)
                check_form(request, viewer, form)
                if look_at and not await comes_first(self._sent_forms, viewer, form):
                    return self.respond(request, viewer, "form_sent.html", status=409, look_at=look_at)
                return await act(request, viewer, form)
            except VlastreamError as error:
                return self._refusal(request, viewer, error)

        self._add(path, guarded, "POST", scope)

    def is_open(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str) -> None:
        """A page that takes no session: the login."""

        async def guarded(request: Request) -> Response:
            try:
                return await endpoint(request)
            except VlastreamError as error:
                return self._refusal(request, None, error)

        self._router.add_api_route(path, guarded, methods=[method], include_in_schema=False)

    def has_nothing_else(self) -> None:
        """Called last: every other path of the console is a page that says so."""

        async def nowhere(request: Request) -> Response:
            if request.url.path == f"{ROOT}/":
                return self.see_other(ROOT)
            raise Problem(Code.NOT_FOUND, "there is no such page in the console")

        self.is_open(f"{ROOT}/{{path:path}}", nowhere, "GET")

    def respond(
        self,
        request: Request,
        viewer: Viewer | None,
        page: str,
        *,
        part: str = "",
        status: int = 200,
        problem: Problem | None = None,
        **content: Any,
    ) -> Response:
        """A whole page, or only its live part where htmx asks for that.

        page, part: names of templates; `page` includes `part` and both take the same content. problem: shown by the
        page, whose status is then that of the problem.
        """
        is_part = bool(part) and request.headers.get("hx-request") == "true"
        shared = {
            "viewer": viewer,
            "sections": [s for s in self._sections if viewer is not None and viewer.may(s.scope)],
            "path": request.url.path,
            "query": request.url.query,
            "now": datetime.now(UTC),
            "problem": problem,
            "once": new_number(),
        }
        text = self._templates.get_template(part if is_part else page).render({**shared, **content})
        return HTMLResponse(text, status_code=problem.status if problem is not None else status, headers=PAGE_HEADERS)

    def see_other(self, path: str) -> Response:
        """After a form: another page, by GET, so that reloading does not send the form again."""
        return RedirectResponse(path, status_code=303, headers=PAGE_HEADERS)

    def _refusal(self, request: Request, viewer: Viewer | None, error: VlastreamError) -> Response:
        if isinstance(error, SessionEnded):
            return self._to_login(request, error)
        problem = problem_of(error)
        if not isinstance(error, Problem):
            log.warning("%s", error, extra={"action": "console_refuse"})
        response = self.respond(request, viewer, "problem.html", part="problem_part.html", problem=problem)
        for name, value in problem.headers.items():
            if name.lower() != "www-authenticate":
                response.headers[name] = value
        return response

    def _to_login(self, request: Request, ended: SessionEnded) -> Response:
        query = f"?{request.url.query}" if request.url.query else ""
        back = request.url.path + query if request.method == "GET" else ROOT
        is_part = request.headers.get("hx-request") == "true"
        if is_part:
            # Where the whole page is that this part stands in.
            current = request.headers.get("hx-current-url", "")
            _, found, rest = current.partition(ROOT)
            back = ROOT + rest if found else ROOT
        where = f"{LOGIN}?next={quote(back, safe='')}" + ("&ended=1" if ended.had_one else "")
        if is_part:
            response = Response(status_code=401, headers={**PAGE_HEADERS, "hx-redirect": where})
        else:
            response = self.see_other(where)
        if ended.had_one:
            self.doorkeeper.log_out(response)
        return response

    def _add(self, path: str, endpoint: Callable[[Request], Awaitable[Response]], method: str, scope: Scope) -> None:
        self._router.add_api_route(
            path, endpoint, methods=[method], include_in_schema=False, openapi_extra=openapi.secured(scope)
        )
