"""/console/control: which stops hold, and who may stop or resume what. The decision is that of POST /v1/control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Request, Response

from ingest_api.console.frame import Frame
from ingest_api.console.hearing import heard
from ingest_api.console.session import ROOT, Viewer
from ingest_api.control import WIDE_TIER, ControlBody, ControlRoute
from ingest_api.keys import origin_of
from ingest_api.problems import Problem
from ingest_api.request_body import validated
from runtime.control import ALL, StopList
from schemas.cards import CardSet
from schemas.codes import Code
from schemas.messages import Control
from schemas.scopes import Scope

CONTROL = f"{ROOT}/control"
RESUME = f"{CONTROL}/resume"
_FIELDS = ("robot_id", "model", "reason", "by")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """A stop as the page shows it. may_resume: whether this viewer's key may lift it."""

    target: str
    title: str
    since: datetime
    who: str
    why: str
    may_resume: bool
    #: The fields of the form that lifts it.
    scope: str
    name: str


class ControlPage:
    def __init__(
        self,
        frame: Frame,
        *,
        route: ControlRoute,
        cards: CardSet,
        stops: StopList,
        stops_known: Callable[[], bool],
    ) -> None:
        self._frame = frame
        self._route = route
        self._models = sorted({card.model for card in cards.models})
        self._stops = stops
        self._stops_known = stops_known
        frame.shows(CONTROL, self.show, Scope.CONTROL)
        frame.acts(CONTROL, self.act, Scope.CONTROL)
        frame.shows(RESUME, self.show_resume, Scope.CONTROL)

    async def show(self, request: Request, viewer: Viewer) -> Response:
        return self._page(request, viewer, done=request.query_params.get("done", ""))

    async def show_resume(self, request: Request, viewer: Viewer) -> Response:
        """Asks why, before robots move again."""
        wanted = request.query_params.get("target", "")
        stop = next((one for one in self._seen_by(viewer) if one.target == wanted and one.may_resume), None)
        if stop is None:
            raise Problem(Code.NOT_FOUND, "no stop that you may lift holds for this: it may have been lifted already")
        return self._frame.respond(request, viewer, "resume.html", stop=stop, reason="")

    async def act(self, request: Request, viewer: Viewer, form: dict[str, str]) -> Response:
        scope, action = form.get("scope", ""), form.get("action", "")
        content: dict[str, Any] = {name: form[name].strip() for name in _FIELDS if form.get(name, "").strip()}
        # The form shows a field for each scope; only that of the chosen one is meant.
        content = {name: text for name, text in content.items() if name not in ("robot_id", "model") or scope in name}
        try:
            body = validated({**content, "action": action, "scope": scope}, ControlBody)
            done = await self._route.decide(body, viewer.key, origin_of(request))
        except Problem as problem:
            return self._page(request, viewer, problem=problem, form=form)
        target, stopped = str(done["target"]), bool(done["stopped"])
        await heard(lambda: any(control.target == target for control in self._stops.stopped()) is stopped)
        return self._frame.see_other(f"{CONTROL}?done={'stopped' if done['stopped'] else 'resumed'}")

    def _page(
        self,
        request: Request,
        viewer: Viewer,
        *,
        done: str = "",
        problem: Problem | None = None,
        form: dict[str, str] | None = None,
    ) -> Response:
        asked = {"scope": "robot", **(form or {"robot_id": request.query_params.get("robot_id", "")})}
        return self._frame.respond(
            request,
            viewer,
            "control.html",
            part="control_part.html",
            stops=self._seen_by(viewer),
            known=self._stops_known(),
            models=self._models,
            may_widely=_may_widely(viewer),
            done=done if done in ("stopped", "resumed") else "",
            problem=problem,
            asked={name: asked.get(name, "") for name in ("scope", *_FIELDS)},
        )

    def _seen_by(self, viewer: Viewer) -> list[Stop]:
        """Stops that concern this person's robots; of everybody for an operator."""
        shown = (_shown(control, viewer) for control in self._stops.stopped())
        return [stop for stop in shown if stop is not None]


def _may_widely(viewer: Viewer) -> bool:
    return viewer.is_operator or viewer.key.tier == WIDE_TIER


def _shown(control: Control, viewer: Viewer) -> Stop | None:
    own = viewer.key.customer_id
    kind, _, name = control.target.partition(":")
    customer, _, robot = name.partition("/")
    if kind in ("robot", "fleet") and customer != own and not viewer.is_operator:
        return None
    foreign = "" if customer == own else f" of {customer}"
    title, scope, field = {
        "robot": (f"robot {robot}{foreign}", "robot", robot),
        "fleet": (f"all robots of {customer}" if foreign else "all your robots", "fleet", ""),
        "model": (f"model {name}", "model", name),
    }.get(kind, ("everything", ALL, ""))
    wide = kind not in ("robot", "fleet")
    # Who stopped what everybody uses is not every customer's to know.
    told = not wide or viewer.is_operator or f" of {own})" in control.who
    return Stop(
        target=control.target,
        title=title,
        since=datetime.fromtimestamp(control.at_ms / 1000, UTC),
        who=control.who if told else "an operator",
        why=control.why,
        may_resume=_may_widely(viewer) if wide else customer == own,
        scope=scope,
        name=field,
    )
