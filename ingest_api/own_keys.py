"""/v1/keys and /v1/auth/token: a customer's own keys, and short-lived tokens in their place."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request, Response
from pydantic import Field
from sqlalchemy import Row

from ingest_api import openapi
from ingest_api.key_admin import LONGEST_GRACE_S, MAX_NAME, Actor, KeyAdmin, KeyTerms
from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing, origin_of
from ingest_api.problems import Problem, fault
from ingest_api.query import Moment
from ingest_api.reading import answer
from ingest_api.request_body import Body, parse_body, read_body
from ingest_api.tokens import LONGEST_S, Tokens
from runtime.errors import Reject
from schemas.codes import Code
from schemas.scopes import DEFAULT_SCOPES, TOKEN_SCOPES, Scope

T = TypeVar("T")

LARGEST_BODY_BYTES = 16 * 1024
_SHOWN = ("id", "prefix", "name", "scopes", "rate_limit", "is_active", "expires_at", "last_used_at", "created_at")

_ScopeName = Annotated[str, Field(max_length=32)]
_RateLimit = Annotated[int, Field(ge=1, lt=2**31)]


class KeyBody(Body):
    """A key of your own customer. It cannot do more than the key that makes it."""

    name: str = Field(default="", max_length=MAX_NAME, description="shown in lists")
    scopes: list[_ScopeName] | None = Field(
        default=None, min_length=1, max_length=16, description="default: those of the key that makes it"
    )
    rate_limit: _RateLimit | None = Field(default=None, description="requests a minute of this key alone")
    expires_at: Moment | None = Field(default=None, description="null: never")


class KeyChangeBody(Body):
    """What is left out stays as it is. rate_limit and expires_at: null for none."""

    name: Annotated[str, Field(max_length=MAX_NAME)] | None = None
    scopes: Annotated[list[_ScopeName], Field(min_length=1, max_length=16)] | None = None
    rate_limit: _RateLimit | None = None
    expires_at: Moment | None = None


class RotateBody(Body):
    grace_s: int = Field(default=0, ge=0, le=LONGEST_GRACE_S, description="seconds that the old key may be used on")


class TokenBody(Body):
    scopes: list[_ScopeName] | None = Field(
        default=None, min_length=1, max_length=16, description="default: all of the key's that a token may carry"
    )
    ttl_s: int | None = Field(default=None, ge=1, le=LONGEST_S, description="default: JWT_TTL_S")


BODIES = (KeyBody, KeyChangeBody, RotateBody, TokenBody)


def actor_of(key: KeyRecord, request: Request) -> Actor:
    return Actor(key.actor, origin_of(request), frozenset(key.scopes))


async def admin(call: Callable[..., T], *args: Any) -> T:
    """A blocking call of an admin class, off the event loop. What it rejects becomes a problem document."""
    try:
        return await asyncio.to_thread(functools.partial(call, *args))
    except Reject as refusal:
        violations = [fault(refusal.field, "not_allowed", str(refusal))] if refusal.field else []
        raise Problem(refusal.code, str(refusal), violations=violations) from refusal


def shown(row: Row[Any]) -> dict[str, Any]:
    return {name: getattr(row, name) for name in _SHOWN}


class OwnKeys:
    """tokens: None where JWT_SECRET_KEY is not set. ttl_s: of a token that says nothing else."""

    def __init__(self, *, keys: KeyRing, key_admin: KeyAdmin, tokens: Tokens | None, ttl_s: int) -> None:
        self._keys = keys
        self._admin = key_admin
        self._tokens = tokens
        self._ttl_s = ttl_s

    async def token(self, request: Request) -> Response:
        """A token that may be handed to a browser, which a key must never be."""
        key = await self._keys.of(request)
        authorization = request.headers.get("authorization", "")
        if not authorization.partition(" ")[2].strip().startswith("vla_"):
            raise Problem(Code.FORBIDDEN, "a token makes no other token: use the key itself")
        if self._tokens is None:
            raise Problem(Code.NOT_FOUND, "this installation gives no tokens: its operator sets JWT_SECRET_KEY")
        body = parse_body(await read_body(request, LARGEST_BODY_BYTES), TokenBody)
        allowed = [scope for scope in TOKEN_SCOPES if scope in key.scopes]
        wanted = body.scopes if body.scopes is not None else allowed
        if more := sorted(set(wanted) - set(allowed)):
            detail = f"a token of this key cannot have the scope {more[0][:32]}"
            raise Problem(Code.FORBIDDEN, detail, violations=[fault("scopes", "not_allowed", detail)])
        scopes = tuple(scope for scope in allowed if scope in wanted)
        token, ends_s = self._tokens.issue(key.key_id, key.customer_id, scopes, body.ttl_s or self._ttl_s)
        content = {
            "token": token,
            "token_type": "Bearer",
            "scopes": list(scopes),
            "expires_at": datetime.fromtimestamp(ends_s, UTC),
            "expires_in_s": body.ttl_s or self._ttl_s,
        }
        return answer(content)

    async def listed(self, request: Request) -> Response:
        key = await self._keys.of(request)
        return answer({"keys": [shown(row) for row in await admin(self._admin.all, key.customer_id)]})

    async def create(self, request: Request) -> Response:
        key = await self._keys.of(request)
        body = parse_body(await read_body(request, LARGEST_BODY_BYTES), KeyBody)
        own = tuple(scope for scope in DEFAULT_SCOPES if scope in key.scopes)
        terms = KeyTerms(
            name=body.name,
            scopes=tuple(dict.fromkeys(body.scopes)) if body.scopes is not None else own,
            rate_limit=body.rate_limit,
            expires_at=body.expires_at,
        )
        new, row = await admin(self._admin.create, actor_of(key, request), key.customer_id, terms)
        return answer({"key": new, **shown(row)}, status=201)

    async def change(self, request: Request, key_id: str) -> Response:
        key = await self._keys.of(request)
        body = parse_body(await read_body(request, LARGEST_BODY_BYTES), KeyChangeBody)
        changes = {name: getattr(body, name) for name in body.model_fields_set}
        changes = {n: v for n, v in changes.items() if v is not None or n in ("rate_limit", "expires_at")}
        row = await admin(self._admin.change, actor_of(key, request), key.customer_id, key_id, changes)
        return answer(shown(row))

    async def rotate(self, request: Request, key_id: str) -> Response:
        key = await self._keys.of(request)
        body = parse_body(await read_body(request, LARGEST_BODY_BYTES), RotateBody)
        actor = actor_of(key, request)
        new, row = await admin(self._admin.rotate, actor, key.customer_id, key_id, body.grace_s)
        return answer({"key": new, **shown(row)}, status=201)

    async def revoke(self, request: Request, key_id: str) -> Response:
        key = await self._keys.of(request)
        rows = await admin(self._admin.revoke, actor_of(key, request), key.customer_id, key_id)
        if not rows:
            raise Problem(Code.NOT_FOUND, "no active key of yours has this id: see GET /v1/keys")
        return answer(shown(rows[0]))


def build_router(routes: OwnKeys) -> APIRouter:
    router = APIRouter(tags=["keys"])
    add: Any = router.add_api_route
    refusals = openapi.problems(400, 401, 403, 404, 413, 422, 503)
    plain: dict[str, Any] = {"response_class": Response, "openapi_extra": openapi.secured(Scope.KEYS)}

    def created(schema: str) -> dict[int | str, dict[str, Any]]:
        return {201: openapi.json_answer(schema, "made")[200], **refusals}

    add(
        "/v1/auth/token",
        routes.token,
        methods=["POST"],
        summary="A short-lived token for a browser or a WebSocket",
        response_class=Response,
        responses={**openapi.json_answer("Token", "send it as a key"), **refusals},
        openapi_extra=openapi.json_body("TokenBody", None, {"scopes": ["inference"], "ttl_s": 600}),
    )
    listed = openapi.json_answer("Keys", "newest first")
    add("/v1/keys", routes.listed, methods=["GET"], summary="Your keys", responses=listed | refusals, **plain)
    add(
        "/v1/keys",
        routes.create,
        methods=["POST"],
        summary="Make a key",
        status_code=201,
        response_class=Response,
        responses=created("NewKey"),
        openapi_extra=openapi.json_body("KeyBody", Scope.KEYS, {"name": "line 3", "scopes": ["inference"]}),
    )
    one = openapi.json_answer("Key", "as it is now")
    add(
        "/v1/keys/{key_id}",
        routes.change,
        methods=["PATCH"],
        summary="Change what a key may do",
        response_class=Response,
        responses=one | refusals,
        openapi_extra=openapi.json_body("KeyChangeBody", Scope.KEYS, {"rate_limit": 600}),
    )
    add(
        "/v1/keys/{key_id}/rotate",
        routes.rotate,
        methods=["POST"],
        summary="A new key in the place of an old one",
        status_code=201,
        response_class=Response,
        responses=created("NewKey"),
        openapi_extra=openapi.json_body("RotateBody", Scope.KEYS, {"grace_s": 86400}),
    )
    add(
        "/v1/keys/{key_id}",
        routes.revoke,
        methods=["DELETE"],
        summary="Revoke a key",
        responses=one | refusals,
        **plain,
    )
    return router
