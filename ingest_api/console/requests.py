"""/console/requests: requests as they come in, and each of them looked into."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from fastapi import Request, Response

from ingest_api.console.frame import Frame
from ingest_api.console.frames import cameras, look_of, picture
from ingest_api.console.inspection import inspected, place_of_outcome, place_of_request
from ingest_api.console.log_frames import LogPort
from ingest_api.console.session import ROOT, Viewer
from ingest_api.history import InferenceList, page_of, page_query, row_query
from ingest_api.problems import Problem
from ingest_api.query import parsed
from ingest_api.reading import Reader, Row, read
from runtime.embodiments import RobotTypes
from runtime.errors import Unavailable
from schemas.codes import Code
from schemas.messages import AuditEvent
from schemas.scopes import Scope

REQUESTS = f"{ROOT}/requests"
_ROWS = "40"
_FILTERS = ("robot_id", "episode_id", "status", "code", "cursor")
STATUSES = ("success", "safety_rejected", "rejected", "rate_limited", "timeout", "superseded", "error")


class RequestPages:
    """log: where frames and the marks of time are. kept_days: how long it has them.

    report: to the audit log, when an operator looks at another customer's frames.
    """

    def __init__(
        self,
        frame: Frame,
        *,
        reader: Reader,
        robots: RobotTypes,
        log: LogPort,
        kept_days: int,
        report: Callable[[AuditEvent], None],
    ) -> None:
        self._frame = frame
        self._reader = reader
        self._robots = robots
        self._log = log
        self._kept_days = kept_days
        self._report = report
        frame.shows(REQUESTS, self.list, Scope.READ)
        frame.shows(f"{REQUESTS}/newest", self.newest, Scope.READ)
        frame.shows(f"{REQUESTS}/{{row_id}}", self.one, Scope.READ)
        frame.shows(f"{REQUESTS}/{{row_id}}/frames/{{camera}}", self.picture, Scope.READ)

    async def list(self, request: Request, viewer: Viewer) -> Response:
        asked = _asked(request)
        wanted = parsed({**asked, "limit": _ROWS}, InferenceList)
        rows, following = page_of(await read(self._reader, page_query(wanted, viewer.customer_id)), wanted.limit)
        kept = {**asked, **({"customer": viewer.asked_customer} if viewer.asked_customer else {})}
        kept.pop("cursor", None)
        live = wanted.cursor is None and request.query_params.get("live") != "off"
        return self._frame.respond(
            request,
            viewer,
            "requests.html",
            part="requests_part.html",
            rows=rows,
            asked={name: asked.get(name, "") for name in _FILTERS},
            statuses=STATUSES,
            kept=urlencode(kept),
            older=urlencode({**kept, "cursor": following}) if following else "",
            every="every 2s" if live else "",
            is_first=wanted.cursor is None,
        )

    async def one(self, request: Request, viewer: Viewer) -> Response:
        return await self._inspected(request, viewer, await self._row(request, viewer))

    async def newest(self, request: Request, viewer: Viewer) -> Response:
        """The newest request, of one robot where one is named, and then the next one by itself."""
        asked = {name: text for name, text in _asked(request).items() if name == "robot_id"}
        wanted = parsed({**asked, "limit": "1"}, InferenceList)
        rows = await read(self._reader, page_query(wanted, viewer.customer_id))
        if not rows:
            raise Problem(Code.NOT_FOUND, "no request has come yet: this page shows the first one once it is answered")
        newest = str(rows[0]["id"])
        if request.query_params.get("seen") == newest and request.headers.get("hx-request") == "true":
            return Response(status_code=204)
        kept = urlencode({**asked, **({"customer": viewer.asked_customer} if viewer.asked_customer else {})})
        row = await self._find(newest, viewer)
        return await self._inspected(request, viewer, row, following=f"{REQUESTS}/newest?{kept}")

    async def picture(self, request: Request, viewer: Viewer) -> Response:
        row = await self._row(request, viewer)
        message = await self._log.request(place_of_request(row))
        camera = str(request.path_params["camera"])
        found = await asyncio.to_thread(picture, message, camera) if message is not None else None
        if found is None:
            detail = f"the log has no such frame any more: it keeps requests for {self._kept_days} days"
            raise Problem(Code.NOT_FOUND, detail)
        if (told := look_of(request, viewer, row, camera)) is not None:
            self._report(told)
        return found

    async def _inspected(self, request: Request, viewer: Viewer, row: Row, following: str = "") -> Response:
        message, outcome, missing = None, None, ""
        try:
            message = await self._log.request(place_of_request(row))
            outcome = await self._log.outcome(place_of_outcome(row))
        except Unavailable as error:
            missing = str(error)
        if message is None and not missing:
            missing = f"no longer in the log, which keeps requests for {self._kept_days} days"
        card = self._robots.find(row["customer_id"], row["robot_type"])
        model = self._robots.cards.deployment(row["deployment"] or "")
        content: dict[str, Any] = {
            "row": row,
            "seen": inspected(row, outcome, model.commanded(card) if card is not None and model is not None else card),
            "cameras": cameras(message) if message is not None else [],
            "frames_missing": missing,
            "state": list(message.state) if message is not None else [],
            "state_dims": card.state if card is not None else (),
            "following": following,
        }
        return self._frame.respond(request, viewer, "request.html", part="request_part.html", **content)

    async def _row(self, request: Request, viewer: Viewer) -> Row:
        return await self._find(str(request.path_params["row_id"]), viewer)

    async def _find(self, text: str, viewer: Viewer) -> Row:
        """Raises Problem 404 for what is no id, nobody's id and somebody else's alike."""
        try:
            row_id = uuid.UUID(text)
        except ValueError:
            rows: list[Row] = []
        else:
            rows = await read(self._reader, row_query(row_id, viewer.customer_id))
        if not rows:
            raise Problem(Code.NOT_FOUND, "no request of yours has this id; a new one appears within a second")
        return rows[0]


def _asked(request: Request) -> dict[str, str]:
    """The filters that are filled in."""
    given = ((name, request.query_params.get(name, "").strip()) for name in _FILTERS)
    return {name: text for name, text in given if text}
