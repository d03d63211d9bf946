"""/console/consent: what may be kept of one's customer and who said so; another tier; the end of what was kept."""

from __future__ import annotations

from datetime import UTC, datetime, time
from typing import Any

from fastapi import Request, Response

from ingest_api.consent import ConsentBody, ConsentRoutes
from ingest_api.console.frame import Frame
from ingest_api.console.hearing import heard
from ingest_api.console.session import ROOT, Viewer
from ingest_api.keys import origin_of
from ingest_api.problems import Problem, fault
from ingest_api.reading import Row
from ingest_api.request_body import validated
from runtime.consent import LEVELS, TIERS
from runtime.errors import Unavailable
from schemas.codes import Code
from schemas.scopes import Scope

CONSENT = f"{ROOT}/consent"
CHANGE = f"{CONSENT}/change"
ERASE = f"{CONSENT}/erase"
#: What a person types before what was kept is erased.
WORD = "erase"
MEANINGS = {
    "none": "what operation needs, and nothing else",
    "metadata": "instructions, embeddings and actions, no pixels",
    "full": "pixels too, and use for training",
}


class ConsentPage:
    """routes: those of /v1/customers/me/consent, which decide."""

    def __init__(self, frame: Frame, *, routes: ConsentRoutes) -> None:
        self._frame = frame
        self._routes = routes
        frame.shows(CONSENT, self.show, Scope.READ)
        frame.shows(CHANGE, self.ask, Scope.DATA)
        frame.acts(CONSENT, self.change, Scope.DATA)
        frame.shows(ERASE, self.ask_erase, Scope.DATA)
        frame.acts(ERASE, self.erase, Scope.DATA)

    async def show(self, request: Request, viewer: Viewer) -> Response:
        return await self._page(request, viewer, done=request.query_params.get("done", ""))

    async def ask(self, request: Request, viewer: Viewer) -> Response:
        """Shows what would hold from then on, before it does."""
        form = _kept(dict(request.query_params))
        try:
            body = _body(form)
        except Problem as problem:
            return await self._page(request, viewer, problem=problem, form=form)
        now = self._routes.now(viewer.key.customer_id)
        return self._frame.respond(
            request, viewer, "consent_ask.html", now_holds=now, wanted=body, form=form, meanings=MEANINGS,
            lessens=TIERS.index(body.tier) < TIERS.index(now["tier"]),
        )  # fmt: skip

    async def change(self, request: Request, viewer: Viewer, form: dict[str, str]) -> Response:
        before = self._routes.now(viewer.key.customer_id)["version"]
        try:
            await self._routes.allow(_body(form), viewer.key, origin_of(request))
        except Problem as problem:
            return await self._page(request, viewer, problem=problem, form=form)
        await self._heard(viewer.key.customer_id, before)
        return self._frame.see_other(f"{CONSENT}?done=changed")

    async def ask_erase(self, request: Request, viewer: Viewer) -> Response:
        return self._frame.respond(request, viewer, "consent_erase.html", word=WORD)

    async def erase(self, request: Request, viewer: Viewer, form: dict[str, str]) -> Response:
        if form.get("word", "").strip().lower() != WORD:
            detail = f"nothing was erased: type the word {WORD}"
            problem = Problem(Code.MALFORMED, detail, violations=[fault("word", "missing", detail)])
            return self._frame.respond(request, viewer, "consent_erase.html", word=WORD, problem=problem)
        before = self._routes.now(viewer.key.customer_id)["version"]
        await self._routes.end_all(viewer.key, origin_of(request))
        await self._heard(viewer.key.customer_id, before)
        return self._frame.see_other(f"{CONSENT}?done=erasing")

    async def _heard(self, customer_id: str, version: int) -> None:
        await heard(lambda: self._routes.now(customer_id)["version"] > version)

    async def _page(
        self,
        request: Request,
        viewer: Viewer,
        *,
        done: str = "",
        problem: Problem | None = None,
        form: dict[str, str] | None = None,
    ) -> Response:
        customer_id = viewer.key.customer_id
        changes: list[Row] = []
        erasure: Row | None = None
        missing = ""
        try:
            changes = await self._routes.changes(customer_id)
            erasure = await self._routes.erasure(customer_id)
        except Unavailable:
            missing = "Postgres does not answer: the history and the state of an erasure are missing"
        now = self._routes.now(customer_id)
        return self._frame.respond(
            request,
            viewer,
            "consent.html",
            now_holds=now,
            expires_at=datetime.fromisoformat(now["expires_at"]) if now["expires_at"] else None,
            consented_at=datetime.fromisoformat(now["consented_at"]) if now["consented_at"] else None,
            changes=changes,
            erasure=erasure,
            missing=missing,
            tiers=TIERS,
            levels=LEVELS,
            meanings=MEANINGS,
            given=_kept(form or {"tier": str(now["tier"])}),
            done=done if done in ("changed", "erasing") else "",
            problem=problem,
        )


def _kept(form: dict[str, str]) -> dict[str, str]:
    return {name: form.get(name, "") for name in ("tier", "ends_on", "anonymization_level")}


def _body(form: dict[str, str]) -> ConsentBody:
    """Raises Problem 400. ends_on: the day whose beginning, UTC, is the end."""
    content: dict[str, Any] = {"tier": form.get("tier", "")}
    if level := form.get("anonymization_level", ""):
        content["anonymization_level"] = level
    if day := form.get("ends_on", "").strip():
        try:
            end = datetime.combine(datetime.strptime(day, "%Y-%m-%d").date(), time(), UTC)
        except ValueError as error:
            detail = "write the day as 2026-01-31"
            raise Problem(Code.MALFORMED, detail, violations=[fault("ends_on", "malformed", detail)]) from error
        if end <= datetime.now(UTC):
            detail = "this day has begun: choose a later one, or the tier none"
            raise Problem(Code.MALFORMED, detail, violations=[fault("ends_on", "past", detail)])
        content["expires_at"] = end.isoformat().replace("+00:00", "Z")
    return validated(content, ConsentBody)
