"""/console/search: instructions by meaning and scenes by resemblance, as /v1/search finds them, with their frames."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from fastapi import Request, Response
from sqlalchemy import Select, select
from sqlalchemy.dialects.postgresql import distinct_on

from ingest_api.console.frame import Frame
from ingest_api.console.frames import blank, cameras, look_of, picture
from ingest_api.console.inspection import place_of_request
from ingest_api.console.log_frames import LogPort
from ingest_api.console.session import ROOT, Viewer
from ingest_api.history import row_query
from ingest_api.problems import Problem
from ingest_api.query import parsed
from ingest_api.reading import Reader, Row, read
from ingest_api.search import (
    InstructionSearch,
    QueryEmbedder,
    SceneSearch,
    asked_scene,
    instruction_query,
    nearest,
    scene_query,
)
from runtime.data_tables import context_metadata
from runtime.tables import inference_log
from schemas.codes import Code
from schemas.messages import AuditEvent
from schemas.scopes import Scope

SEARCH = f"{ROOT}/search"
_MOST_FOUND = "12"
#: Among so many of the newest requests, one with a found instruction is looked for.
_SEARCHED = 20_000


class SearchPages:
    """embedder: of what is typed. log: where frames are.

    report: to the audit log, when an operator looks at another customer's frames.
    """

    def __init__(
        self,
        frame: Frame,
        *,
        reader: Reader,
        embedder: QueryEmbedder,
        log: LogPort,
        report: Callable[[AuditEvent], None],
    ) -> None:
        self._frame = frame
        self._reader = reader
        self._embedder = embedder
        self._log = log
        self._report = report
        frame.shows(SEARCH, self.show, Scope.READ)
        frame.shows(f"{SEARCH}/frames/{{row_id}}", self.thumbnail, Scope.READ)

    async def show(self, request: Request, viewer: Viewer) -> Response:
        """q: an instruction is looked for; like: the request whose scene others shall resemble."""
        asked = {name: request.query_params.get(name, "").strip() for name in ("q", "like", "robot_type")}
        customer_id = viewer.customer_id or viewer.key.customer_id
        instructions: list[Row] | None = None
        scenes: list[Row] | None = None
        problem: Problem | None = None
        try:
            if asked["q"]:
                instructions = await self._instructions(asked, customer_id)
            elif asked["like"]:
                scenes = await self._scenes(asked, customer_id)
        except Problem as refused:
            problem = refused
        return self._frame.respond(
            request,
            viewer,
            "search.html",
            asked=asked,
            customer_id=customer_id,
            instructions=instructions,
            scenes=scenes,
            problem=problem,
        )

    async def thumbnail(self, request: Request, viewer: Viewer) -> Response:
        """The first frame of a request; a blank one where the log has it no more."""
        try:
            row_id = uuid.UUID(str(request.path_params["row_id"]))
        except ValueError:
            rows: list[Row] = []
        else:
            rows = await read(self._reader, row_query(row_id, viewer.customer_id))
        if not rows:
            raise Problem(Code.NOT_FOUND, "no request of yours has this id")
        message = await self._log.request(place_of_request(rows[0]))
        first = next(iter(cameras(message)), None) if message is not None else None
        if message is None or first is None:
            return blank()
        found = await asyncio.to_thread(picture, message, first)
        if found is not None and (told := look_of(request, viewer, rows[0], first)) is not None:
            self._report(told)
        return found or blank()

    async def _instructions(self, asked: dict[str, str], customer_id: str) -> list[Row]:
        wanted = parsed(_given(asked, "q"), InstructionSearch)
        embedding = await self._embedder.embed(wanted.q, customer_id)
        query = instruction_query(wanted, customer_id, embedding)
        found = await asyncio.to_thread(nearest, self._reader, query, wanted.limit)
        if not found:
            return []
        shown = await read(self._reader, _newest_with([row["instruction"] for row in found], customer_id))
        by_text = {row["instruction"]: row for row in shown}
        return [{**row, "newest": by_text.get(row["instruction"])} for row in found]

    async def _scenes(self, asked: dict[str, str], customer_id: str) -> list[Row]:
        given = _given(asked, "like")
        request_id = given.pop("like")
        wanted = parsed(given, SceneSearch)
        found = await read(self._reader, asked_scene(customer_id, request_id)) if "\x00" not in request_id else []
        if not found:
            raise Problem(
                Code.NOT_FOUND,
                "no request of yours has this id and an image embedding: consent decides, and it takes a second",
            )
        query = scene_query(wanted, customer_id, found[0]).add_columns(context_metadata.c.id)
        return await asyncio.to_thread(nearest, self._reader, query, wanted.limit)


def _given(asked: dict[str, str], what: str) -> dict[str, str]:
    return {"limit": _MOST_FOUND, **{name: asked[name] for name in (what, "robot_type") if asked[name]}}


def _newest_with(instructions: Sequence[str], customer_id: str) -> Select[Any]:
    """The newest request with each of these texts, where one of the newest has it."""
    log = inference_log.c
    newest = (
        select(log.id, log.request_id, log.robot_id, log.instruction, log.created_at)
        .where(log.customer_id == customer_id)
        .order_by(log.created_at.desc())
        .limit(_SEARCHED)
        .subquery()
        .c
    )
    query = select(newest.id, newest.request_id, newest.robot_id, newest.instruction, newest.created_at)
    query = query.where(newest.instruction.in_(instructions)).ext(distinct_on(newest.instruction))
    return query.order_by(newest.instruction, newest.created_at.desc())
