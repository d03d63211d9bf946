"""/v1/episodes: a robot tells when an episode starts, when it ends, and whether the task was done."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy import Select, select

from ingest_api import openapi
from ingest_api.keys import KeyRing
from ingest_api.problems import Problem, fault
from ingest_api.publishing import record
from ingest_api.query import Flag, Name, Span, described, parse_query
from ingest_api.reading import Reader, answer, read
from ingest_api.request_body import Body, parse_body, read_body
from runtime.data_tables import episodes
from runtime.publisher import PublisherPort
from schemas.codes import Code
from schemas.messages import EpisodeEvent, EpisodeKind
from schemas.scopes import Scope
from schemas.topics import EPISODES

_LARGEST_BODY_BYTES = 16 * 1024
_EXAMPLE = {"event": "start", "robot_id": "arm-1", "episode_id": "e-1", "task": "stack the blocks"}
_COLUMNS = ("robot_id", "robot_type", "episode_id", "task", "environment_type", "success", "started_at", "ended_at")

Environment = Literal["lab", "warehouse", "factory", "outdoor", "home", "office", "hospital", "retail", "other"]
RobotId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
EpisodeId = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,128}$")]
EventId = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$")]


class EpisodeBody(Body):
    """The start or the end of an episode. `success` goes with an end."""

    event: Literal["start", "end"]
    robot_id: RobotId
    episode_id: EpisodeId
    robot_type: str = Field(default="", max_length=64)
    success: bool | None = Field(default=None, description="of an end: whether the task was done; null: not judged")
    task: str | None = Field(default=None, max_length=500, description="what was to be done")
    environment_type: Environment | None = None
    event_id: EventId | None = Field(default=None, description="UUID; the same id again is a repeat")
    at_ms: int | None = Field(default=None, ge=0, lt=2**53, description="robot's clock, Unix epoch; recorded only")


class EpisodeList(Span):
    robot_id: Name | None = Field(default=None, description="of this robot only")
    success: Flag | None = Field(default=None, description="judged so")


def list_query(wanted: EpisodeList, customer_id: str | None) -> Select[Any]:
    """Episodes newest first. customer_id None: everybody's, for operators alone; each then says whose it is."""
    began = episodes.c.started_at
    query = select(*(episodes.c[name] for name in _COLUMNS))
    if customer_id is None:
        query = query.add_columns(episodes.c.customer_id)
    else:
        query = query.where(episodes.c.customer_id == customer_id)
    if wanted.robot_id is not None:
        query = query.where(episodes.c.robot_id == wanted.robot_id)
    if wanted.success is not None:
        query = query.where(episodes.c.success.is_(wanted.success))
    if wanted.since is not None:
        query = query.where(began >= wanted.since)
    if wanted.until is not None:
        query = query.where(began < wanted.until)
    return query.order_by(began.desc().nulls_last()).limit(wanted.limit)


def build_router(keys: KeyRing, publisher: PublisherPort, reader: Reader) -> APIRouter:
    router = APIRouter(tags=["episodes"])

    @router.post(
        "/v1/episodes",
        summary="An episode starts, or ends",
        response_class=Response,
        responses={**openapi.json_answer("Recorded", "the log has it"), **openapi.problems(400, 401, 403, 413, 503)},
        openapi_extra=openapi.json_body("EpisodeBody", Scope.DATA, _EXAMPLE),
    )
    async def post(request: Request) -> Response:
        key = await keys.of(request)
        event = _event(parse_body(await read_body(request, _LARGEST_BODY_BYTES), EpisodeBody), key.customer_id)
        where = await record(
            publisher,
            EPISODES,
            event,
            key=event.robot_id,
            event_type="vla.episode.v1",
            event_id=event.event_id,
            customer_id=key.customer_id,
        )
        return answer({"id": event.event_id, "record": f"{where.topic}/{where.partition}/{where.offset}"})

    @router.get(
        "/v1/episodes",
        summary="Your episodes, newest first",
        response_class=Response,
        responses={**openapi.json_answer("Episodes", "the episodes"), **openapi.problems(400, 401, 403, 503)},
        openapi_extra={**openapi.secured(Scope.READ), "parameters": described(EpisodeList)},
    )
    async def listed(request: Request) -> Response:
        key = await keys.of(request)
        wanted = parse_query(request, EpisodeList)
        return answer({"episodes": await read(reader, list_query(wanted, key.customer_id))})

    return router


def _event(body: EpisodeBody, customer_id: str) -> EpisodeEvent:
    if body.event == "start" and body.success is not None:
        detail = "`success` goes with the event `end`"
        raise Problem(Code.MALFORMED, detail, violations=[fault("success", "unexpected", detail)])
    for field, value in (("task", body.task), ("robot_type", body.robot_type)):
        if value and not value.isprintable():
            detail = f"`{field}` takes printable characters"
            raise Problem(Code.MALFORMED, detail, violations=[fault(field, "not_printable", detail)])
    start = body.event == "start"
    event = EpisodeEvent(
        event_id=body.event_id or str(uuid.uuid4()),
        kind=EpisodeKind.EPISODE_KIND_START if start else EpisodeKind.EPISODE_KIND_END,
        customer_id=customer_id,
        robot_id=body.robot_id,
        robot_type=body.robot_type,
        episode_id=body.episode_id,
        task=body.task or "",
        environment_type=body.environment_type or "",
        at_ms=body.at_ms or 0,
    )
    if body.success is not None:
        event.success = body.success
    return event
