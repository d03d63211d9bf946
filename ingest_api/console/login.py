"""/console/login and /console/logout: a key is typed once, kept nowhere, and a cookie stands for it."""

from __future__ import annotations

from fastapi import Request, Response

from ingest_api.console.frame import LOGIN, Frame
from ingest_api.console.session import (
    ROOT,
    SessionEnded,
    check_form,
    check_same_origin,
    own_page,
    read_form,
)
from ingest_api.problems import Problem
from schemas.codes import Code

LOGOUT = f"{ROOT}/logout"
#: Refusals that the person before the form can mend.
_TOLD = (Code.UNAUTHENTICATED, Code.FORBIDDEN, Code.UNAVAILABLE)


class LoginPage:
    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        frame.is_open(LOGIN, self.show, "GET")
        frame.is_open(LOGIN, self.log_in, "POST")
        frame.is_open(LOGOUT, self.log_out, "POST")

    async def show(self, request: Request) -> Response:
        asked = request.query_params
        return self._page(request, own_page(asked.get("next", ROOT)), ended=asked.get("ended") == "1")

    async def log_in(self, request: Request) -> Response:
        check_same_origin(request)
        form = await read_form(request)
        following = own_page(form.get("next", ROOT))
        response = self._frame.see_other(following)
        try:
            await self._frame.doorkeeper.log_in(request, form.get("key", ""), response)
        except Problem as problem:
            if problem.code not in _TOLD:
                raise
            return self._page(request, following, fault=problem.detail, status=problem.status)
        return response

    async def log_out(self, request: Request) -> Response:
        """Takes the cookie away. Without a session there is nothing to protect."""
        try:
            viewer = await self._frame.doorkeeper.viewer(request)
        except SessionEnded:
            return self._frame.see_other(LOGIN)
        check_form(request, viewer, await read_form(request))
        response = self._frame.see_other(LOGIN)
        self._frame.doorkeeper.log_out(response)
        return response

    def _page(
        self, request: Request, following: str, *, ended: bool = False, fault: str = "", status: int = 200
    ) -> Response:
        return self._frame.respond(
            request, None, "login.html", status=status, following=following, ended=ended, fault=fault
        )
