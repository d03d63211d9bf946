"""/v1/analytics: usage, safety, robots and instructions of one customer, as the ETL has added them up."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BeforeValidator, Field
from sqlalchemy import ColumnElement, Integer, Select, column, func, select, table

from ingest_api import openapi
from ingest_api.keys import KeyRing
from ingest_api.query import Limit, Name, Parameters, described, parse_query
from ingest_api.reading import Reader, answer, read
from runtime.data_tables import robot_performance_metrics
from runtime.tables import inference_log
from schemas.scopes import Scope


def _view(name: str, *columns: str) -> Any:
    """A materialized view: no table of the metadata."""
    return table(name, *(column(c) for c in columns))


_FIGURES = ("total_inferences", "successful_inferences", "safety_rejections", "robots", "gpu_ms")
daily_usage = _view(
    "daily_usage", "customer_id", "robot_type", "model", "date", "failed_inferences", "avg_latency_ms",
    "p95_latency_ms", *_FIGURES,
)  # fmt: skip
monthly_usage = _view("monthly_usage", "customer_id", "month", *_FIGURES)
safety_trend = _view(
    "safety_trend", "customer_id", "robot_type", "date", "avg_safety_score", "min_safety_score", "checked",
    "incidents", "critical", "high", "medium", "low",
)  # fmt: skip

_PERFORMANCE = [c for c in robot_performance_metrics.columns if c.name not in ("id", "customer_id")]


def _day(text: object) -> object:
    if isinstance(text, str) and len(text) != len("2026-01-31"):
        raise ValueError("write it as 2026-01-31")
    return text


Day = Annotated[date, BeforeValidator(_day)]


class Days(Parameters):
    since: Day | None = Field(default=None, description="first UTC day")
    until: Day | None = Field(default=None, description="last UTC day")
    limit: Limit = Field(default=100, description="rows at most")


class Usage(Days):
    period: Literal["day", "month"] = Field(default="day", description="by day, robot type and model; or by month")


class ByRobotType(Days):
    robot_type: Name | None = Field(default=None, description="of this robot type only")


class Instructions(Parameters):
    limit: Limit = Field(default=20, description="rows at most")
    category: Name | None = Field(default=None, description="of this category only")


def build_router(keys: KeyRing, reader: Reader) -> APIRouter:
    """Each route answers {"rows": [...]}; the newest first, the most used instructions first."""
    router = APIRouter(tags=["analytics"])

    def route(name: str, summary: str, parameters: type[Parameters], query: Any) -> None:
        async def get(request: Request) -> Response:
            key = await keys.of(request)
            wanted = parse_query(request, parameters)
            return answer({"rows": await read(reader, query(wanted, key.customer_id))})

        get.__name__ = f"analytics_{name}"
        router.add_api_route(
            f"/v1/analytics/{name}",
            get,
            methods=["GET"],
            summary=summary,
            response_class=Response,
            responses={**openapi.json_answer("Figures", "the figures"), **openapi.problems(400, 401, 403, 503)},
            openapi_extra={**openapi.secured(Scope.READ), "parameters": described(parameters)},
        )

    route("usage", "Your requests by day or month", Usage, usage_query)
    route("safety", "Safety scores and incidents by day", ByRobotType, safety_query)
    route("robots", "How well each robot type does, by day and model", ByRobotType, robots_query)
    route("instructions", "What your robots were told most", Instructions, instructions_query)
    return router


def usage_query(wanted: Usage, customer_id: str) -> Select[Any]:
    if wanted.period == "month":
        first = wanted.since.replace(day=1) if wanted.since is not None else None
        return _span(monthly_usage, monthly_usage.c.month, customer_id, first, wanted.until, wanted.limit)
    return _span(daily_usage, daily_usage.c.date, customer_id, wanted.since, wanted.until, wanted.limit)


def safety_query(wanted: ByRobotType, customer_id: str) -> Select[Any]:
    query = _span(safety_trend, safety_trend.c.date, customer_id, wanted.since, wanted.until, wanted.limit)
    return query if wanted.robot_type is None else query.where(safety_trend.c.robot_type == wanted.robot_type)


def robots_query(wanted: ByRobotType, customer_id: str) -> Select[Any]:
    metrics = robot_performance_metrics
    query = select(*_PERFORMANCE).where(metrics.c.customer_id == customer_id)
    if wanted.robot_type is not None:
        query = query.where(metrics.c.robot_type == wanted.robot_type)
    if wanted.since is not None:
        query = query.where(metrics.c.date >= wanted.since)
    if wanted.until is not None:
        query = query.where(metrics.c.date <= wanted.until)
    return query.order_by(metrics.c.date.desc(), metrics.c.robot_type, metrics.c.model).limit(wanted.limit)


def instructions_query(wanted: Instructions, customer_id: str) -> Select[Any]:
    """From this customer's own rows: the table of all instructions adds every customer's uses up."""
    log = inference_log.c
    uses = func.count().label("uses")
    query = (
        select(
            log.instruction,
            log.instruction_category.label("category"),
            uses,
            func.avg((log.status == "success").cast(Integer)).label("success_rate"),
            func.avg(log.safety_score).label("avg_safety_score"),
            func.max(log.created_at).label("last_seen"),
        )
        .where(log.customer_id == customer_id, log.instruction.is_not(None))
        .group_by(log.instruction, log.instruction_category)
        .order_by(uses.desc(), log.instruction)
        .limit(wanted.limit)
    )
    return query if wanted.category is None else query.where(log.instruction_category == wanted.category)


def _span(
    view: Any, day: ColumnElement[Any], customer_id: str, first: date | None, last: date | None, limit: int
) -> Select[Any]:
    query = select(*(c for c in view.c if c.name != "customer_id")).where(view.c.customer_id == customer_id)
    if first is not None:
        query = query.where(day >= first)
    if last is not None:
        query = query.where(day <= last)
    return query.order_by(day.desc()).limit(limit)
