"""GET /v1/inferences/{request_id}: what became of a request, from the rows that the sink wrote."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import orjson
from fastapi import APIRouter, Request, Response
from sqlalchemy import select

from ingest_api import openapi
from ingest_api.keys import KeyRing
from ingest_api.problems import Problem
from runtime.database import Database
from runtime.tables import inference_log
from schemas.codes import Code

#: Rows of one id in an answer: an id that is used again after the gate's window is another request.
_MOST_ROWS = 20
_COLUMNS = (
    "request_id", "robot_id", "robot_type", "model", "deployment", "model_revision", "batch_size", "instruction",
    "episode_id", "step", "actions", "action_horizon", "action_dim", "safety_score", "safety_flags", "status", "code",
    "http_status", "validation_errors", "latency_total_ms", "latency_queue_ms", "latency_gpu_ms", "consent_tier",
    "created_at", "decided_at",
)  # fmt: skip


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


def build_router(keys: KeyRing, history: History) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/v1/inferences/{request_id}",
        tags=["inference"],
        summary="What became of one of your requests",
        response_class=Response,
        responses={
            **openapi.json_answer("Inferences", "the rows of this id"),
            **openapi.problems(401, 403, 404, 503),
        },
        openapi_extra=openapi.SECURED,
    )
    async def one(request: Request, request_id: str) -> Response:
        key = await keys.authenticate(request.headers.get("authorization"))
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
