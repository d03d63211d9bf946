"""What operators and their machines ask an API process: whether it is well, and its metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import orjson
from fastapi import APIRouter, Response

from ingest_api import monitoring, openapi
from ingest_api.federation import merge, scrape
from ingest_api.health import Health
from runtime.metrics import CONTENT_TYPE, Metrics
from runtime.targets import Target
from runtime.workers import LiveWorkers
from schemas.cards import CardSet


def build_router(health: Health, title: str, version: str) -> APIRouter:
    """Health, and where things are."""
    router = APIRouter(tags=["operation"])

    @router.get("/", summary="Name, version and where things are")
    async def index() -> dict[str, Any]:
        paths = {
            "docs": "/docs", "openapi": "/openapi.json", "inference": "/v1/inference", "models": "/v1/models",
            "stream sessions": "/v1/stream/sessions", "safety": "/v1/safety/evaluate",
            "gpu": "/v1/monitoring/gpu", "queue": "/v1/monitoring/queue",
            "stop and resume": "/v1/control", "episodes": "/v1/episodes", "feedback": "/v1/feedback",
            "search": "/v1/search/instructions", "keys": "/v1/keys", "usage": "/v1/usage", "audit": "/v1/audit",
             "analytics": "/v1/analytics/usage",
            "console": "/console", "health": "/health",
            "metrics": "/metrics", "metrics of all roles": "/metrics/federate",
        }  # fmt: skip
        return {"name": title, "version": version, "links": paths}

    @router.get("/livez", summary="Whether this process runs")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Whether this process takes requests", responses=openapi.not_ready("not yet"))
    async def readyz() -> Response:
        reasons = health.waiting_for()
        body = {"status": "waiting" if reasons else "ready", "waiting_for": reasons}
        return _json(body, 503 if reasons else 200)

    @router.get("/health", summary="Every server behind this API", responses=openapi.not_ready("down"))
    async def full_health() -> Response:
        status, body = await health.report()
        return _json(body, status)

    return router


def build_metrics_router(
    *,
    metrics: Metrics,
    cards: CardSet,
    workers: LiveWorkers,
    targets: Callable[[], list[Target]],
    scraper: httpx.AsyncClient,
) -> APIRouter:
    """What Prometheus asks. targets: the roles whose metrics are federated; blocks."""
    router = APIRouter(tags=["operation"])
    exposition = openapi.text_answer("Prometheus' text exposition")

    @router.get("/metrics", summary="This process's metrics", response_class=Response, responses=exposition)
    async def own_metrics() -> Response:
        monitoring.set_gauges(metrics, cards, workers)
        return _exposition(metrics.exposition())

    @router.get("/metrics/federate", summary="The metrics of every role", response_class=Response, responses=exposition)
    async def federate() -> Response:
        scraped = await scrape(await asyncio.to_thread(targets), scraper)
        return _exposition(await asyncio.to_thread(merge, scraped))

    return router


def _json(body: object, status: int) -> Response:
    return Response(orjson.dumps(body), status_code=status, media_type="application/json")


def _exposition(content: bytes) -> Response:
    return Response(content, headers={"content-type": CONTENT_TYPE})
