"""Where peers' clients find their protocols."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from ingest_api import openapi
from ingest_api.peers.door import PeerServices
from ingest_api.peers.openpi import OpenpiRoute
from ingest_api.peers.openvla import ActQuery, ActRoute
from ingest_api.peers.vla_eval import VlaEvalRoute
from ingest_api.query import described
from ingest_api.websocket import guarded
from schemas.cards import CardSet
from schemas.scopes import Scope

_READ_ONLY = "read-only here: set batch_sizes in the model card"


def build_router(services: PeerServices) -> APIRouter:
    router = APIRouter(tags=["peers"])
    openpi = guarded(OpenpiRoute(services).connect)
    for path in ("/", "/v1/openpi", "/v1/openpi/{model}"):
        router.add_api_websocket_route(path, openpi)
    vla_eval = guarded(VlaEvalRoute(services).connect)
    for path in ("/v1/vla-eval", "/v1/vla-eval/{model}"):
        router.add_api_websocket_route(path, vla_eval)
    router.add_api_route(
        "/act",
        ActRoute(services).post,
        methods=["POST"],
        summary="One action for one observation, as OpenVLA's clients ask for it",
        response_class=Response,
        responses={
            **openapi.json_answer("Act", "the first action of the chunk, as json-numpy"),
            **openapi.problems(400, 401, 403, 404, 409, 413, 422, 423, 429, 500, 503, 504),
        },
        openapi_extra={**openapi.json_body("ActBody", Scope.INFERENCE), "parameters": described(ActQuery)},
    )

    @router.get(
        "/config",
        summary="What vla-eval's sweeps ask for; nothing is set by it",
        response_class=Response,
        responses={**openapi.json_answer("Config", "as it is"), 422: _REFUSED},
    )
    async def config(request: Request) -> Response:
        body = config_document(services.cards, sorted(request.query_params))
        return Response(orjson.dumps(body), status_code=422 if "errors" in body else 200, media_type="application/json")

    return router


_REFUSED: dict[str, Any] = {
    "description": _READ_ONLY,
    "content": {"application/json": {"schema": {"type": "object"}}},
}


def config_document(cards: CardSet, wanted: list[str]) -> dict[str, Any]:
    """wanted: names that the caller tries to set."""
    models = {card.model: card for card in reversed(cards.models)}
    default = models.get(cards.default_model or "")
    config = {"max_batch_size": default.batch_sizes[-1] if default is not None else 1, "max_wait_time": 0.0}
    document: dict[str, Any] = {"applied": {}, "config": config}
    if wanted:
        document["errors"] = [f"{name[:64]}: {_READ_ONLY}" for name in wanted[:16]]
    return document
