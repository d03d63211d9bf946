"""/v1/feedback: what a person or a robot says of an inference afterwards. Joined with it here, kept in the log."""

from __future__ import annotations

import math
import uuid
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StringConstraints
from sqlalchemy import func, select

from ingest_api import openapi
from ingest_api.episodes import EventId
from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing
from ingest_api.problems import Problem, fault
from ingest_api.publishing import record
from ingest_api.query import Name, Span, described, parse_query
from ingest_api.reading import Reader, Row, answer, read
from ingest_api.request_body import Body, parse_body, read_body
from runtime.data_tables import feedback
from runtime.publisher import PublisherPort
from runtime.tables import inference_log
from schemas.codes import Code
from schemas.messages import ActionMatrix, Feedback, FeedbackKind
from schemas.scopes import Scope
from schemas.topics import FEEDBACK

_LARGEST_BODY_BYTES = 256 * 1024
MOST_COMMENT_CHARACTERS = 2000

Kind = Literal["success", "safety-rating", "action-correction", "failure-report"]
_KINDS: dict[Kind, FeedbackKind.ValueType] = {
    "success": FeedbackKind.FEEDBACK_KIND_SUCCESS,
    "safety-rating": FeedbackKind.FEEDBACK_KIND_SAFETY_RATING,
    "action-correction": FeedbackKind.FEEDBACK_KIND_ACTION_CORRECTION,
    "failure-report": FeedbackKind.FEEDBACK_KIND_FAILURE_REPORT,
}
#: What feedback of a kind must bring, and what it may bring besides a comment.
_NEEDS: dict[Kind, tuple[str, ...]] = {
    "success": ("success",),
    "safety-rating": ("rating",),
    "action-correction": ("actions",),
    "failure-report": ("failure_type",),
}
_MAY: dict[Kind, tuple[str, ...]] = {"success": ("rating",), "failure-report": ("rating",)}
_VALUES = ("success", "rating", "actions", "failure_type")

_COLUMNS = (
    "id", "request_id", "robot_id", "feedback_type", "success", "rating", "corrected_action", "failure_type", "comment",
    "created_by", "created_at",
)  # fmt: skip


class FeedbackFields(Body):
    """Feedback on one of your requests. Which fields belong to it follows from its kind."""

    request_id: str = Field(min_length=1, max_length=128, description="of a request of yours that has ended")
    success: bool | None = Field(default=None, description="kind success: whether the robot did what it should")
    rating: int | None = Field(
        default=None,
        json_schema_extra={"minimum": 1, "maximum": 5},
        description="kind safety-rating, and success or failure-report if you like: 1..5, 5 is best",
    )
    actions: list[list[float]] | None = Field(
        default=None, description="kind action-correction: what should have been done, rows as in the answer's actions"
    )
    failure_type: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,63}$")] | None = Field(
        default=None, description="kind failure-report: a short code, for example dropped_object"
    )
    comment: str | None = Field(default=None, max_length=MOST_COMMENT_CHARACTERS)
    feedback_id: EventId | None = Field(default=None, description="UUID; the same id again is a repeat")


class FeedbackBody(FeedbackFields):
    """The same, with its kind."""

    type: Kind


class FeedbackList(Span):
    type: Kind | None = None
    robot_id: Name | None = Field(default=None, description="on requests of this robot only")
    request_id: Name | None = Field(default=None, description="on this request only")


class FeedbackRoutes:
    def __init__(self, keys: KeyRing, publisher: PublisherPort, reader: Reader) -> None:
        self._keys = keys
        self._publisher = publisher
        self._reader = reader

    async def post(self, request: Request) -> Response:
        key = await self._key(request)
        body = parse_body(await read_body(request, _LARGEST_BODY_BYTES), FeedbackBody)
        return await self._take(key, body.type, body)

    async def post_kind(self, request: Request, kind: Kind) -> Response:
        key = await self._key(request)
        body = parse_body(await read_body(request, _LARGEST_BODY_BYTES), FeedbackFields)
        return await self._take(key, kind, body)

    async def listed(self, request: Request) -> Response:
        key = await self._key(request)
        wanted = parse_query(request, FeedbackList)
        query = select(*(feedback.c[name] for name in _COLUMNS)).where(feedback.c.customer_id == key.customer_id)
        if wanted.type is not None:
            query = query.where(feedback.c.feedback_type == stored_kind(wanted.type))
        for name in ("robot_id", "request_id"):
            if (value := getattr(wanted, name)) is not None:
                query = query.where(feedback.c[name] == value)
        if wanted.since is not None:
            query = query.where(feedback.c.created_at >= wanted.since)
        if wanted.until is not None:
            query = query.where(feedback.c.created_at < wanted.until)
        rows = await read(self._reader, query.order_by(feedback.c.created_at.desc()).limit(wanted.limit))
        return answer({"feedback": rows})

    async def stats(self, request: Request) -> Response:
        key = await self._key(request)
        wanted = parse_query(request, Span)
        success = feedback.c.success
        query = select(
            feedback.c.feedback_type,
            func.count().label("count"),
            func.avg(feedback.c.rating).label("avg_rating"),
            func.count(success).label("judged"),
            func.count().filter(success).label("succeeded"),
            func.max(feedback.c.created_at).label("latest"),
        ).where(feedback.c.customer_id == key.customer_id)
        if wanted.since is not None:
            query = query.where(feedback.c.created_at >= wanted.since)
        if wanted.until is not None:
            query = query.where(feedback.c.created_at < wanted.until)
        rows = await read(self._reader, query.group_by(feedback.c.feedback_type).order_by(feedback.c.feedback_type))
        judged = sum(row["judged"] for row in rows)
        succeeded = sum(row["succeeded"] for row in rows)
        totals = {"count": sum(row["count"] for row in rows), "success_rate": succeeded / judged if judged else None}
        return answer({**totals, "types": rows})

    async def _key(self, request: Request) -> KeyRecord:
        return await self._keys.of(request)

    async def _take(self, key: KeyRecord, kind: Kind, body: FeedbackFields) -> Response:
        _check_fields(kind, body)
        row = await self._inference(key.customer_id, body.request_id)
        said = Feedback(
            feedback_id=body.feedback_id or str(uuid.uuid4()),
            kind=_KINDS[kind],
            customer_id=key.customer_id,
            robot_id=row["robot_id"],
            request_id=body.request_id,
            row_id=str(row["id"]),
            rating=body.rating or 0,
            failure_type=body.failure_type or "",
            comment=body.comment or "",
            who=f"key {key.key_id}",
        )
        if body.success is not None:
            said.success = body.success
        if body.actions is not None:
            said.corrected.CopyFrom(_correction(body.actions, row))
        where = await record(
            self._publisher,
            FEEDBACK,
            said,
            key=said.robot_id,
            event_type="vla.feedback.v1",
            event_id=said.feedback_id,
            customer_id=key.customer_id,
        )
        return answer({"id": said.feedback_id, "record": f"{where.topic}/{where.partition}/{where.offset}"})

    async def _inference(self, customer_id: str, request_id: str) -> Row:
        log = inference_log.c
        query = (
            select(log.id, log.robot_id, log.action_horizon, log.action_dim)
            .where(log.customer_id == customer_id, log.request_id == request_id)
            .order_by(log.created_at.desc())
            .limit(1)
        )
        rows = [] if "\x00" in request_id else await read(self._reader, query)
        if not rows:
            detail = "no request of yours has this id; a new one is known here within a second of its answer"
            raise Problem(Code.NOT_FOUND, detail, violations=[fault("request_id", "unknown", detail)])
        return rows[0]


def stored_kind(kind: Kind) -> str:
    """The word of the column feedback_type."""
    return {"success": "success_rating"}.get(kind, kind.replace("-", "_"))


def build_router(keys: KeyRing, publisher: PublisherPort, reader: Reader) -> APIRouter:
    router = APIRouter(tags=["feedback"])
    routes = FeedbackRoutes(keys, publisher, reader)
    posting: dict[str, Any] = {
        "methods": ["POST"],
        "response_class": Response,
        "responses": {
            **openapi.json_answer("Recorded", "the log has it"),
            **openapi.problems(400, 401, 403, 404, 413, 422, 503),
        },
    }
    example = {"request_id": "6f1c0a3e-5d1b-4c5e-9f59-0f3a1f8f2a10", "success": True, "comment": "clean grasp"}
    router.add_api_route(
        "/v1/feedback",
        routes.post,
        summary="Feedback on one of your requests",
        openapi_extra=openapi.json_body("FeedbackBody", Scope.DATA, {"type": "success", **example}),
        **posting,
    )
    for kind in _KINDS:
        router.add_api_route(
            f"/v1/feedback/{kind}",
            _of_kind(routes, kind),
            summary=f"Feedback of kind {kind}",
            openapi_extra=openapi.json_body("FeedbackFields", Scope.DATA, example if kind == "success" else None),
            **posting,
        )
    reading: dict[str, Any] = {"methods": ["GET"], "response_class": Response}
    router.add_api_route(
        "/v1/feedback",
        routes.listed,
        summary="Your feedback, newest first",
        responses={**openapi.json_answer("FeedbackRows", "the feedback"), **openapi.problems(400, 401, 403, 503)},
        openapi_extra={**openapi.secured(Scope.READ), "parameters": described(FeedbackList)},
        **reading,
    )
    router.add_api_route(
        "/v1/feedback/stats",
        routes.stats,
        summary="Your feedback in figures",
        responses={**openapi.json_answer("FeedbackStats", "the figures"), **openapi.problems(400, 401, 403, 503)},
        openapi_extra={**openapi.secured(Scope.READ), "parameters": described(Span)},
        **reading,
    )
    return router


def _of_kind(routes: FeedbackRoutes, kind: Kind) -> Any:
    async def post(request: Request) -> Response:
        return await routes.post_kind(request, kind)

    post.__name__ = f"post_{kind.replace('-', '_')}"
    return post


def _check_fields(kind: Kind, body: FeedbackFields) -> None:
    """Raises Problem 400 for a field that the kind lacks or does not take, 422 for a value out of range."""
    for field in _VALUES:
        given = getattr(body, field) is not None
        if given == (field in _NEEDS[kind]) or (given and field in _MAY.get(kind, ())):
            continue
        reason = "unexpected" if given else "missing"
        detail = f"feedback of kind {kind} {'takes no' if given else 'needs'} `{field}`"
        raise Problem(Code.MALFORMED, detail, violations=[fault(field, reason, detail)])
    if body.rating is not None and not 1 <= body.rating <= 5:
        raise _out_of_range("rating", "a rating is one of 1 to 5")
    if body.comment is not None and "\x00" in body.comment:
        raise _out_of_range("comment", "a comment cannot hold the character NUL")


def _correction(rows: list[list[float]], inference: Row) -> ActionMatrix:
    horizon, dim = inference["action_horizon"], inference["action_dim"]
    if not dim:
        raise _out_of_range("actions", "this request brought no actions that could be corrected")
    if not 1 <= len(rows) <= horizon:
        raise _out_of_range("actions", f"the chunk had {horizon} steps: send 1 to {horizon} rows")
    if any(len(row) != dim for row in rows):
        raise _out_of_range("actions", f"every row has {dim} values, as in the answer's actions")
    values = [value for row in rows for value in row]
    # float32 in the message: what lies beyond it would become infinite.
    if not all(math.isfinite(value) and abs(value) < 3.0e38 for value in values):
        raise _out_of_range("actions", "every value is a finite number")
    return ActionMatrix(horizon=len(rows), dim=dim, values=values)


def _out_of_range(field: str, detail: str) -> Problem:
    return Problem(Code.INVALID_REQUEST, detail, violations=[fault(field, "out_of_range", detail)])
