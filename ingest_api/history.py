"""GET /v1/inferences: what became of requests, from the rows that the sink wrote."""

from __future__ import annotations

import asyncio
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Protocol

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import Select, literal, select, tuple_

from ingest_api import openapi
from ingest_api.keys import KeyRing
from ingest_api.problems import Problem
from ingest_api.query import Name, Span, described, parse_query
from ingest_api.reading import Reader, answer, read
from runtime.database import Database
from runtime.tables import inference_log
from schemas.codes import Code
from schemas.scopes import Scope

#: Rows of one id in an answer: an id that is used again after the gate's window is another request.
_MOST_ROWS = 20
_COLUMNS = (
    "request_id", "robot_id", "robot_type", "model", "deployment", "model_revision", "batch_size", "instruction",
    "episode_id", "step", "actions", "action_horizon", "action_dim", "safety_score", "safety_flags", "status", "code",
    "http_status", "validation_errors", "latency_total_ms", "latency_queue_ms", "latency_gpu_ms", "consent_tier",
    "created_at", "decided_at",
)  # fmt: skip
#: Of a list: without the chunks.
_LISTED = tuple(name for name in _COLUMNS if name not in ("actions", "safety_flags"))
#: Time of the last row in milliseconds, and its id. Rows are in milliseconds, as the broker's times are.
_CURSOR = re.compile(r"^\d{1,14}-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


class History(Protocol):
    def find(self, customer_id: str, request_id: str) -> list[dict[str, Any]]:
        """Rows of one customer's request, newest first. Blocks. Raises Unavailable while Postgres is away."""
        ...


class PostgresHistory:
    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, customer_id: str, request_id: str) -> list[dict[str, Any]]:
        query = (
            select(*(inference_log.c[name] for name in _COLUMNS))
            .where(inference_log.c.customer_id == customer_id, inference_log.c.request_id == request_id)
            .order_by(inference_log.c.created_at.desc())
            .limit(_MOST_ROWS)
        )
        with self._database.begin() as connection:
            return [dict(zip(_COLUMNS, row, strict=True)) for row in connection.execute(query)]


class InferenceList(Span):
    """Which of the customer's requests."""

    robot_id: Name | None = Field(default=None, description="of this robot only")
    robot_type: Name | None = Field(default=None, description="of this robot type only")
    episode_id: Name | None = Field(default=None, description="of this episode only")
    status: Name | None = Field(default=None, description="success, safety_rejected, timeout, rejected, error, ...")
    code: Name | None = Field(default=None, description="refused with this code")
    cursor: Annotated[str, Field(pattern=_CURSOR.pattern)] | None = Field(
        default=None, description="`next` of the page before"
    )


def page_query(wanted: InferenceList, customer_id: str | None) -> Select[Any]:
    """One row more than a page has, so that it is known whether another one follows.

    customer_id None: everybody's rows, which are for operators alone; each then says whose it is.
    """
    log = inference_log.c
    query = select(log.id, *(log[name] for name in _LISTED))
    query = query.add_columns(log.customer_id) if customer_id is None else query.where(log.customer_id == customer_id)
    for name in ("robot_id", "robot_type", "episode_id", "status", "code"):
        if (value := getattr(wanted, name)) is not None:
            query = query.where(log[name] == value)
    if wanted.since is not None:
        query = query.where(log.created_at >= wanted.since)
    if wanted.until is not None:
        query = query.where(log.created_at < wanted.until)
    if wanted.cursor is not None:
        milliseconds, _, row_id = wanted.cursor.partition("-")
        place = tuple_(literal(timestamp_of(int(milliseconds))), literal(uuid.UUID(row_id)))
        query = query.where(tuple_(log.created_at, log.id) < place)
    return query.order_by(log.created_at.desc(), log.id.desc()).limit(wanted.limit + 1)


def row_query(row_id: uuid.UUID, customer_id: str | None) -> Select[Any]:
    """One request whole, with the places of its records in the log. customer_id: as for `page_query`."""
    log = inference_log.c
    columns = (c for c in log if c.name not in ("instruction_embedding", "action_vector", "action_magnitude"))
    query = select(*columns).where(log.id == row_id)
    return query if customer_id is None else query.where(log.customer_id == customer_id)


def page_of(rows: list[dict[str, Any]], limit: int) -> tuple[list[dict[str, Any]], str | None]:
    """What `page_query` found as one page, and the cursor of the next one; None: there is none."""
    page = rows[:limit]
    if len(rows) <= limit:
        return page, None
    return page, f"{round(page[-1]['created_at'].timestamp() * 1000)}-{page[-1]['id']}"


def timestamp_of(milliseconds: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)


def build_router(keys: KeyRing, history: History, reader: Reader) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/v1/inferences",
        tags=["inference"],
        summary="Your requests, newest first",
        response_class=Response,
        responses={**openapi.json_answer("InferencePage", "one page"), **openapi.problems(400, 401, 403, 503)},
        openapi_extra={**openapi.secured(Scope.READ), "parameters": described(InferenceList)},
    )
    async def listed(request: Request) -> Response:
        key = await keys.of(request)
        wanted = parse_query(request, InferenceList)
        rows = await read(reader, page_query(wanted, key.customer_id))
        page, following = page_of(rows, wanted.limit)
        return answer({"inferences": page, "next": following})

    @router.get(
        "/v1/inferences/{request_id}",
        tags=["inference"],
        summary="What became of one of your requests",
        response_class=Response,
        responses={
            **openapi.json_answer("Inferences", "the rows of this id"),
            **openapi.problems(401, 403, 404, 503),
        },
        openapi_extra=openapi.secured(Scope.READ),
    )
    async def one(request: Request, request_id: str) -> Response:
        key = await keys.of(request)
        rows = [] if "\x00" in request_id else await asyncio.to_thread(history.find, key.customer_id, request_id)
        if not rows:
            detail = "no request of yours has this id; a new one appears here within a second of its answer"
            raise Problem(Code.NOT_FOUND, detail)
        content = orjson.dumps({"request_id": request_id, "inferences": rows}, default=_plain)
        return Response(content, media_type="application/json")

    return router


def _plain(value: object) -> Any:
    """Numeric columns hold whole numbers beyond what bigint holds."""
    return int(str(value))
