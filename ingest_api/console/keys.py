"""/console/keys: the keys of one's own customer: which there are, new ones, others in their place, their end.

The same class makes and ends them as for /v1/keys; a key is shown by the answer that made it and never again, so the
forms that make one act once.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import Request, Response

from ingest_api.console.frame import Frame
from ingest_api.console.session import ROOT, Viewer
from ingest_api.key_admin import MAX_NAME, KeyAdmin, KeyTerms
from ingest_api.own_keys import KeyBody, RotateBody, actor_of, admin, shown
from ingest_api.problems import Problem, fault
from ingest_api.request_body import validated
from schemas.codes import Code
from schemas.scopes import DEFAULT_SCOPES, Scope

KEYS = f"{ROOT}/keys"
#: What a form offers: days until a key ends, "" for never.
DAYS = {"": "never", "1": "in a day", "7": "in 7 days", "30": "in 30 days", "90": "in 90 days", "365": "in a year"}
GRACE_S = {"0": "at once", "3600": "after an hour", "86400": "after a day", "604800": "after a week"}
MEANINGS = {
    Scope.INFERENCE: "ask for actions",
    Scope.READ: "see requests and usage",
    Scope.CONTROL: "stop and resume",
    Scope.DATA: "episodes, feedback, consent",
    Scope.KEYS: "make and revoke keys",
    Scope.ADMIN: "everything of everybody",
}


class KeyPages:
    def __init__(self, frame: Frame, *, key_admin: KeyAdmin) -> None:
        self._frame = frame
        self._admin = key_admin
        frame.shows(KEYS, self.list, Scope.KEYS)
        frame.acts(KEYS, self.create, Scope.KEYS, look_at=KEYS)
        for action, act, look_at in (("rotate", self.rotate, KEYS), ("revoke", self.revoke, "")):
            frame.shows(f"{KEYS}/{{key_id}}/{action}", self.ask, Scope.KEYS)
            frame.acts(f"{KEYS}/{{key_id}}/{action}", act, Scope.KEYS, look_at=look_at)

    async def list(self, request: Request, viewer: Viewer) -> Response:
        return await self._page(request, viewer, done=request.query_params.get("done", ""))

    async def create(self, request: Request, viewer: Viewer, form: dict[str, str]) -> Response:
        try:
            terms = _terms(form)
            made, row = await admin(self._admin.create, actor_of(viewer.key, request), viewer.key.customer_id, terms)
        except Problem as problem:
            return await self._page(request, viewer, problem=problem, form=form)
        return self._made(request, viewer, made, shown(row))

    async def ask(self, request: Request, viewer: Viewer) -> Response:
        """Asks once more, before a key is replaced or ends."""
        return self._asked(request, viewer, await self._held(request, viewer))

    async def rotate(self, request: Request, viewer: Viewer, form: dict[str, str]) -> Response:
        held = await self._held(request, viewer)
        try:
            body = validated(
                {"grace_s": int(form.get("grace_s", "")) if form.get("grace_s") in GRACE_S else -1}, RotateBody
            )
            who, own = actor_of(viewer.key, request), viewer.key.customer_id
            made, row = await admin(self._admin.rotate, who, own, str(held["id"]), body.grace_s)
        except Problem as problem:
            return self._asked(request, viewer, held, problem)
        return self._made(request, viewer, made, shown(row))

    async def revoke(self, request: Request, viewer: Viewer, form: dict[str, str]) -> Response:
        held = await self._held(request, viewer)
        who, own = actor_of(viewer.key, request), viewer.key.customer_id
        if not await admin(self._admin.revoke, who, own, str(held["id"])):
            raise Problem(Code.NOT_FOUND, "this key was revoked already")
        return self._frame.see_other(f"{KEYS}?done=revoked")

    async def _held(self, request: Request, viewer: Viewer) -> dict[str, Any]:
        """The active key of the path. Raises Problem 404 for nobody's and for somebody else's alike."""
        wanted = str(request.path_params["key_id"])
        for row in await admin(self._admin.all, viewer.key.customer_id):
            if str(row.id) == wanted and row.is_active:
                return shown(row)
        raise Problem(Code.NOT_FOUND, "no active key of yours has this id")

    def _asked(
        self, request: Request, viewer: Viewer, held: dict[str, Any], problem: Problem | None = None
    ) -> Response:
        return self._frame.respond(
            request,
            viewer,
            "key_ask.html",
            key=held,
            action="rotate" if request.url.path.endswith("/rotate") else "revoke",
            is_own=str(held["id"]) == viewer.key.key_id,
            graces=GRACE_S,
            problem=problem,
        )

    def _made(self, request: Request, viewer: Viewer, made: str, row: dict[str, Any]) -> Response:
        return self._frame.respond(request, viewer, "key_made.html", status=201, made=made, key=row)

    async def _page(
        self,
        request: Request,
        viewer: Viewer,
        *,
        done: str = "",
        problem: Problem | None = None,
        form: dict[str, str] | None = None,
    ) -> Response:
        rows = [shown(row) for row in await admin(self._admin.all, viewer.key.customer_id)]
        for row in rows:
            row["state"] = _state(row)
        own = [scope for scope in Scope if viewer.may(scope)]
        given = form or {
            "name": "",
            "days": "90",
            **{f"scope.{s}": "on" for s in own if s in (Scope.INFERENCE, Scope.READ)},
        }
        return self._frame.respond(
            request,
            viewer,
            "keys.html",
            rows=rows,
            own_id=viewer.key.key_id,
            scopes=own,
            meanings=MEANINGS,
            days=DAYS,
            most_name=MAX_NAME,
            given=given,
            done=done if done == "revoked" else "",
            problem=problem,
        )


def _terms(form: dict[str, str]) -> KeyTerms:
    """Raises Problem 400 for what is not one of the form's own choices."""
    days = form.get("days", "")
    if days not in DAYS:
        detail = "choose when the key ends"
        raise Problem(Code.MALFORMED, detail, violations=[fault("days", "unknown", detail)])
    body = validated({"name": form.get("name", "").strip()}, KeyBody)
    scopes = tuple(scope for scope in (*DEFAULT_SCOPES, Scope.ADMIN) if form.get(f"scope.{scope}"))
    limit = form.get("rate_limit", "").strip()
    if limit and not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        detail = "the requests a minute are a whole number, or nothing for no limit"
        raise Problem(Code.MALFORMED, detail, violations=[fault("rate_limit", "malformed", detail)])
    expires_at = datetime.now(UTC) + timedelta(days=int(days)) if days else None
    return KeyTerms(name=body.name, scopes=scopes, rate_limit=int(limit) if limit else None, expires_at=expires_at)


def _state(row: dict[str, Any]) -> str:
    if not row["is_active"]:
        return "revoked"
    return "expired" if row["expires_at"] is not None and row["expires_at"] <= datetime.now(UTC) else "active"
