"""/v1/customers, /v1/usage and /v1/audit: one's own with scope `read`, everybody's with scope `admin`."""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import Date, Select, Table, cast, func, literal_column, select

from ingest_api import openapi
from ingest_api.consent import ME
from ingest_api.customer_admin import CustomerAdmin
from ingest_api.customer_admin import described as customer_document
from ingest_api.key_admin import KeyAdmin, KeyTerms
from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing
from ingest_api.own_keys import LARGEST_BODY_BYTES, actor_of, admin
from ingest_api.problems import Problem, fault
from ingest_api.query import Name, Parameters, Span, described, parse_query
from ingest_api.reading import Reader, Row, answer, read
from ingest_api.request_body import Body, parse_body, read_body
from runtime.errors import Fatal
from runtime.tables import safety_incidents
from runtime.tenancy_tables import audit_trail, usage_daily, usage_robots
from runtime.windows import first_day_of_month
from schemas.codes import Code
from schemas.scopes import Scope

_DAYS = 31
_INCIDENT = (
    "id", "request_id", "robot_id", "robot_type", "model", "deployment", "episode_id", "severity", "violation_type",
    "violation_details", "action_taken", "safety_score", "created_at",
)  # fmt: skip
_COUNTS = ("requests", "inferences", "successful", "safety_rejected", "rate_limited", "gpu_ms")

_Limit = Annotated[int, Field(ge=1, lt=2**31)]


class CustomerBody(Body):
    """The first key is answered with the customer."""

    email: str = Field(min_length=3, max_length=254)
    tier: Literal["free", "pro", "enterprise"] = "free"


class TierBody(Body):
    tier: Literal["free", "pro", "enterprise"]


class LimitsBody(Body):
    """What is left out stays as it is; null: that of the tier again."""

    requests_per_minute: _Limit | None = None
    requests_per_day: _Limit | None = Field(default=None, description="of the UTC day")
    monthly_quota: Annotated[int, Field(ge=1, lt=2**63)] | None = Field(default=None, description="of a calendar month")
    max_robots: _Limit | None = Field(default=None, description="distinct robots of a UTC day")
    max_payload_bytes: _Limit | None = Field(default=None, description="of a request")


BODIES = (CustomerBody, TierBody, LimitsBody)


class UsageParameters(Span):
    """Of which customer and by what. `since` and `until` count by UTC day."""

    by: Literal["day", "month"] = Field(default="month", description="what a row sums up")
    customer_id: Name | None = Field(default=None, description="scope admin: of this one only, else of all")


class AuditParameters(Span):
    """Which events."""

    action: Name | None = Field(default=None, description="this one only, for example key.create")
    customer_id: Name | None = Field(default=None, description="scope admin: of this one only, else of all")


class IncidentParameters(Span):
    """Which incidents."""

    severity: Literal["low", "medium", "high", "critical"] | None = Field(default=None, description="this one only")


def usage_query(wanted: UsageParameters, customer_id: str | None) -> Select[Any]:
    """Sums by customer and day or month. `period`: its first day."""
    sums = [func.sum(usage_daily.c[name]).label(name) for name in _COUNTS]
    # Of days of which it is no longer kept which robots there were, it is still known how many.
    most = func.max(usage_daily.c.robots).label("robots")
    used = _by_period(usage_daily, wanted, customer_id, [*sums, most]).subquery()
    distinct = func.count(func.distinct(usage_robots.c.robot_id)).label("robots")
    seen = _by_period(usage_robots, wanted, customer_id, [distinct]).subquery()
    same = (seen.c.customer_id == used.c.customer_id) & (seen.c.period == used.c.period)
    robots = func.greatest(used.c.robots, func.coalesce(seen.c.robots, 0)).label("robots")
    columns = [used.c[name] for name in ("customer_id", "period", *_COUNTS)]
    query = select(*columns, robots).select_from(used.outerjoin(seen, same))
    return query.order_by(used.c.period.desc(), used.c.customer_id).limit(wanted.limit)


def _by_period(table: Table, wanted: UsageParameters, customer_id: str | None, sums: list[Any]) -> Select[Any]:
    day, customer = table.c.date, table.c.customer_id
    period = day if wanted.by == "day" else cast(func.date_trunc(literal_column("'month'"), day), Date)
    query = select(customer, period.label("period"), *sums).group_by(customer, period)
    if customer_id is not None:
        query = query.where(customer == customer_id)
    if wanted.since is not None:
        query = query.where(day >= wanted.since.date())
    if wanted.until is not None:
        query = query.where(day < wanted.until.date())
    return query


class CustomerRoutes:
    def __init__(self, *, keys: KeyRing, customers: CustomerAdmin, key_admin: KeyAdmin, reader: Reader) -> None:
        self._keys = keys
        self._customers = customers
        self._key_admin = key_admin
        self._reader = reader

    async def listed(self, request: Request) -> Response:
        await self._keys.of(request)
        rows = await admin(self._customers.all)
        return answer({"customers": [customer_document(row) for row in rows]})

    async def create(self, request: Request) -> Response:
        key = await self._keys.of(request)
        body = parse_body(await read_body(request, LARGEST_BODY_BYTES), CustomerBody)
        actor = actor_of(key, request)
        try:
            row = await admin(self._customers.ensure, actor, body.email, body.tier)
        except Fatal as error:
            detail = "this is no e-mail address"
            raise Problem(Code.INVALID_REQUEST, detail, violations=[fault("email", "malformed", detail)]) from error
        # An operator gives what they may not use themselves: the actor's own scopes do not bound it.
        new, _ = await admin(
            self._key_admin.create, type(actor)(actor.who, actor.origin), row.id, KeyTerms(name="first key")
        )
        return answer({"key": new, "customer": customer_document(row)}, status=201)

    async def one(self, request: Request, customer_id: str) -> Response:
        of = await self._whose(request, customer_id)
        return answer(customer_document(await admin(self._customers.one, of)))

    async def tier(self, request: Request, customer_id: str) -> Response:
        key = await self._keys.of(request)
        body = parse_body(await read_body(request, LARGEST_BODY_BYTES), TierBody)
        row = await admin(self._customers.set_tier, actor_of(key, request), _named(key, customer_id), body.tier)
        return answer(customer_document(row))

    async def limits(self, request: Request, customer_id: str) -> Response:
        key = await self._keys.of(request)
        body = parse_body(await read_body(request, LARGEST_BODY_BYTES), LimitsBody)
        own = {name: getattr(body, name) for name in body.model_fields_set}
        row = await admin(self._customers.set_limits, actor_of(key, request), _named(key, customer_id), own)
        return answer(customer_document(row))

    async def stats(self, request: Request, customer_id: str) -> Response:
        """This month's sums, what is left of the quota, and the last days."""
        of = await self._whose(request, customer_id)
        customer = customer_document(await admin(self._customers.one, of))
        month = first_day_of_month(time.time())
        sums = [func.coalesce(func.sum(usage_daily.c[name]), 0).label(name) for name in _COUNTS]
        this_month = select(*sums).where(usage_daily.c.customer_id == of, usage_daily.c.date >= month)
        days = (
            select(*(usage_daily.c[name] for name in ("date", *_COUNTS, "robots")))
            .where(usage_daily.c.customer_id == of)
            .order_by(usage_daily.c.date.desc())
            .limit(_DAYS)
        )
        used = await read(self._reader, this_month)
        month_row: Row = used[0] if used else dict.fromkeys(_COUNTS, 0)
        quota = customer["limits"]["monthly_quota"]
        counted = month_row.get("requests", 0) - month_row.get("rate_limited", 0)
        content = {
            "customer_id": of,
            "month": {"first_day": month, **month_row},
            "quota": {"monthly_quota": quota, "left": max(quota - counted, 0) if quota is not None else None},
            "days": await read(self._reader, days),
        }
        return answer(content)

    async def incidents(self, request: Request, customer_id: str) -> Response:
        of = await self._whose(request, customer_id)
        wanted = parse_query(request, IncidentParameters)
        columns = safety_incidents.c
        query = select(*(columns[name] for name in _INCIDENT)).where(columns.customer_id == of)
        if wanted.severity is not None:
            query = query.where(columns.severity == wanted.severity)
        query = _within(query, columns.created_at, wanted)
        return answer({"incidents": await read(self._reader, query)})

    async def usage(self, request: Request) -> Response:
        key = await self._keys.of(request)
        wanted = parse_query(request, UsageParameters)
        of = _asked(key, wanted.customer_id)
        return answer({"rows": await read(self._reader, usage_query(wanted, of))})

    async def audit(self, request: Request) -> Response:
        key = await self._keys.of(request)
        wanted = parse_query(request, AuditParameters)
        of = _asked(key, wanted.customer_id)
        columns = audit_trail.c
        query = select(columns.at, columns.customer_id, columns.actor, columns.action, columns.target)
        query = query.add_columns(columns.origin, columns.details)
        if of is not None:
            query = query.where(columns.customer_id == of)
        if wanted.action is not None:
            query = query.where(columns.action == wanted.action)
        return answer({"events": await read(self._reader, _within(query, columns.at, wanted))})

    async def _whose(self, request: Request, customer_id: str) -> str:
        """Their own, or with scope admin anybody's. Raises Problem 404 as for one that is not there."""
        key = await self._keys.of(request)
        of = _named(key, customer_id)
        if of != key.customer_id and Scope.ADMIN not in key.scopes:
            raise Problem(Code.NOT_FOUND, f"this key belongs to another customer: use its own id, or `{ME}`")
        return of


def _named(key: KeyRecord, customer_id: str) -> str:
    return key.customer_id if customer_id == ME else customer_id


def _asked(key: KeyRecord, customer_id: str | None) -> str | None:
    """Whose rows; None: everybody's. Raises Problem 403."""
    if Scope.ADMIN in key.scopes:
        return None if customer_id is None else _named(key, customer_id)
    if customer_id not in (None, ME, key.customer_id):
        detail = "what belongs to other customers takes a key with scope admin"
        raise Problem(Code.FORBIDDEN, detail, violations=[fault("customer_id", "scope", detail)])
    return key.customer_id


def _within(query: Select[Any], column: Any, wanted: Span) -> Select[Any]:
    if wanted.since is not None:
        query = query.where(column >= wanted.since)
    if wanted.until is not None:
        query = query.where(column < wanted.until)
    return query.order_by(column.desc()).limit(wanted.limit)


def build_router(routes: CustomerRoutes) -> APIRouter:
    router = APIRouter()
    refusals = openapi.problems(400, 401, 403, 404, 413, 422, 503)
    base = "/v1/customers/{customer_id}"

    def get(
        path: str, handler: Any, schema: str, summary: str, scope: Scope, parameters: type[Parameters] | None
    ) -> None:
        router.add_api_route(
            path,
            handler,
            methods=["GET"],
            tags=["customers"],
            summary=summary,
            response_class=Response,
            responses={**openapi.json_answer(schema, "as it is now"), **refusals},
            openapi_extra={
                **openapi.secured(scope),
                **({"parameters": described(parameters)} if parameters is not None else {}),
            },
        )

    def write(method: str, path: str, handler: Any, schemas: tuple[str, str], summary: str, example: Any) -> None:
        body, said = schemas
        status = 201 if method == "POST" else 200
        router.add_api_route(
            path,
            handler,
            methods=[method],
            tags=["customers"],
            summary=summary,
            status_code=status,
            response_class=Response,
            responses={status: openapi.json_answer(said, "as it is now")[200], **refusals},
            openapi_extra=openapi.json_body(body, Scope.ADMIN, example),
        )

    get("/v1/customers", routes.listed, "Customers", "All customers", Scope.ADMIN, None)
    example = {"email": "ana@example.org", "tier": "pro"}
    write("POST", "/v1/customers", routes.create, ("CustomerBody", "NewCustomer"), "Make a customer", example)
    get(base, routes.one, "Customer", "A customer and its limits", Scope.READ, None)
    get(f"{base}/stats", routes.stats, "CustomerStats", "What a customer used", Scope.READ, None)
    get(
        f"{base}/safety-incidents",
        routes.incidents,
        "Incidents",
        "What the action gate refused or changed",
        Scope.READ,
        IncidentParameters,
    )
    write("PUT", f"{base}/tier", routes.tier, ("TierBody", "Customer"), "Give another tier", {"tier": "pro"})
    limits = {"requests_per_minute": 6000, "max_robots": None}
    write("PUT", f"{base}/limits", routes.limits, ("LimitsBody", "Customer"), "Give limits of their own", limits)
    get("/v1/usage", routes.usage, "Usage", "What was used, for billing", Scope.READ, UsageParameters)
    get("/v1/audit", routes.audit, "Audit", "What was done, newest first", Scope.READ, AuditParameters)
    return router
