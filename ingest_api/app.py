"""The HTTP surface: which path leads to what. Everything that it needs is handed in."""

from __future__ import annotations

import importlib.metadata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
from fastapi import APIRouter, FastAPI, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi

from ingest_api import (
    analytics,
    consent,
    customers,
    episodes,
    feedback,
    history,
    models,
    monitoring,
    openapi,
    operation,
    own_keys,
    problems,
    robots,
    search,
)
from ingest_api.admission import Admission
from ingest_api.consent import ConsentBody
from ingest_api.console.letter_desk import LetterPort
from ingest_api.console.log_frames import LogPort
from ingest_api.console.routes import ConsoleServices
from ingest_api.console.routes import install as install_console
from ingest_api.console.sent_forms import SentForms
from ingest_api.control import ControlRoute
from ingest_api.counting import InferenceCounts
from ingest_api.customer_admin import CustomerAdmin
from ingest_api.customers import CustomerRoutes
from ingest_api.episodes import EpisodeBody
from ingest_api.exchange import Exchange
from ingest_api.feedback import FeedbackBody, FeedbackFields
from ingest_api.gateway import Gateway
from ingest_api.hardening import HeadAsGet, KnownHosts, PlainBodies, PromptBodies, SecurityHeaders
from ingest_api.health import Health
from ingest_api.history import History
from ingest_api.inference import InferenceRoute
from ingest_api.key_admin import KeyAdmin
from ingest_api.keys import KeyRing
from ingest_api.limits import Limits
from ingest_api.middleware import Measured
from ingest_api.own_keys import OwnKeys
from ingest_api.peers.door import PeerServices
from ingest_api.peers.routes import build_router as build_peers_router
from ingest_api.reading import Reader
from ingest_api.safety import SafetyRoute
from ingest_api.search import QueryEmbedder
from ingest_api.sessions import Sessions
from ingest_api.stream.route import StreamRoute
from ingest_api.stream.route import build_router as build_stream_router
from ingest_api.tokens import Tokens
from runtime.consent import ConsentList
from runtime.control import StopList
from runtime.embodiments import RobotTypes
from runtime.group_lag import GroupLag
from runtime.metrics import Metrics
from runtime.publisher import PublisherPort
from runtime.settings import Settings
from runtime.targets import Target
from runtime.tracing import NoTracing, Tracing
from runtime.traffic import TrafficTable
from runtime.workers import LiveWorkers
from schemas.cards import CardSet, EmbodimentCard
from schemas.topics import Topic

TITLE = "vlastream"
_DESCRIPTION = "Actions for robots from vision-language-action models. Every error is a problem document (RFC 9457)."
#: Of the routes that name the schema of theirs.
_BODIES = (EpisodeBody, FeedbackBody, FeedbackFields, ConsentBody, EmbodimentCard, *own_keys.BODIES, *customers.BODIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What the routes stand on."""

    cards: CardSet
    robots: RobotTypes
    metrics: Metrics
    sessions: Sessions
    gateway: Gateway
    keys: KeyRing
    workers: LiveWorkers
    traffic: TrafficTable
    history: History
    health: Health
    publisher: PublisherPort
    reader: Reader
    embedder: QueryEmbedder
    consents: ConsentList
    limits: Limits
    customers: CustomerAdmin
    key_admin: KeyAdmin
    tokens: Tokens | None
    topics: list[Topic]
    federate_targets: Callable[[], list[Target]]
    group_lag: GroupLag
    #: Of the console: which stops hold, whether all of them are known yet, and single records of the log.
    stops: StopList
    stops_known: Callable[[], bool]
    log: LogPort
    letters: LetterPort
    sent_forms: SentForms
    tracing: Tracing = field(default_factory=NoTracing)


def create_app(settings: Settings, services: Services) -> FastAPI:
    """The ASGI application. Routes take no key but those of a customer's own data and work."""
    scraper = httpx.AsyncClient(trust_env=False)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with scraper:
            yield

    app = FastAPI(
        title=TITLE,
        version=_version(),
        description=_DESCRIPTION,
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    problems.install(app)
    _add_middleware(app, settings, services.metrics)
    app.include_router(_work(settings, services))
    app.include_router(history.build_router(services.keys, services.history, services.reader))
    app.include_router(_data(services))
    app.include_router(_tenancy(settings, services))
    app.include_router(models.build_router(services.cards, services.workers, services.traffic))
    app.include_router(monitoring.build_router(services.cards, services.workers, services.group_lag))
    app.include_router(operation.build_router(services.health, TITLE, app.version))
    if settings.enable_prometheus:
        metrics_router = operation.build_metrics_router(
            metrics=services.metrics,
            cards=services.cards,
            workers=services.workers,
            targets=services.federate_targets,
            scraper=scraper,
        )
        app.include_router(metrics_router)
    install_console(app, settings, _console(services))
    app.openapi = partial(_document, app)  # type: ignore[method-assign] # as FastAPI documents it
    return app


def _add_middleware(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """From the inside out: what is added last sees a request first."""
    app.add_middleware(PromptBodies, timeout_s=settings.client_timeout_s)
    app.add_middleware(PlainBodies)
    app.add_middleware(KnownHosts, hosts=settings.allowed_hosts)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["authorization", "content-type", "traceparent"],
            expose_headers=["retry-after", "ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"],
            max_age=600,
        )
    app.add_middleware(SecurityHeaders, https_only=settings.environment == "production")
    app.add_middleware(Measured, metrics=metrics)
    app.add_middleware(HeadAsGet)


def _work(settings: Settings, services: Services) -> APIRouter:
    """What customers come for."""
    router = APIRouter()
    exchange = Exchange(
        settings=settings,
        cards=services.cards,
        gateway=services.gateway,
        admission=Admission(settings.inference_queue_max_size, settings.inference_queue_max_bytes, services.metrics),
        workers=services.workers,
        limits=services.limits,
        counts=InferenceCounts(services.metrics, services.cards),
        tracing=services.tracing,
    )
    inference = InferenceRoute(settings=settings, keys=services.keys, exchange=exchange)
    stream = StreamRoute(settings=settings, keys=services.keys, exchange=exchange, sessions=services.sessions)
    router.include_router(build_stream_router(stream))
    peers = PeerServices(
        settings=settings,
        cards=services.cards,
        exchange=exchange,
        keys=services.keys,
        sessions=services.sessions,
        publisher=services.publisher,
    )
    router.include_router(build_peers_router(peers))
    router.add_api_route(
        "/v1/inference",
        inference.post,
        methods=["POST"],
        tags=["inference"],
        summary="Actions for one observation",
        response_class=Response,
        responses={
            **openapi.json_answer("ActionChunk", "an action chunk that passed the action gate"),
            **openapi.problems(400, 401, 403, 404, 409, 413, 422, 423, 429, 500, 503, 504),
        },
        openapi_extra=openapi.inference_body(),
    )
    safety = SafetyRoute(settings=settings, robots=services.robots, keys=services.keys)
    router.add_api_route(
        "/v1/safety/evaluate",
        safety.post,
        methods=["POST"],
        tags=["safety"],
        summary="The action gate's verdict on actions of your own",
        response_class=Response,
        responses={
            **openapi.json_answer("SafetyVerdict", "the actions may be executed"),
            **openapi.problems(400, 401, 403, 413, 422, 503),
        },
        openapi_extra=openapi.safety_body(services.cards),
    )
    control = ControlRoute(cards=services.cards, keys=services.keys, publisher=services.publisher)
    router.add_api_route(
        "/v1/control",
        control.post,
        methods=["POST"],
        tags=["safety"],
        summary="Stop robots, or let them go on",
        response_class=Response,
        responses={
            **openapi.json_answer("Control", "the log has it; it holds within a second"),
            **openapi.problems(400, 401, 403, 404, 413, 503),
        },
        openapi_extra=openapi.control_body(),
    )
    return router


def _data(services: Services) -> APIRouter:
    """What customers say afterwards, and what they find out of what was kept."""
    router = APIRouter()
    keys, publisher, reader = services.keys, services.publisher, services.reader
    robot_routes = robots.RobotRoutes(robots=services.robots, keys=keys, publisher=publisher)
    router.include_router(robots.build_router(robot_routes))
    router.include_router(episodes.build_router(keys, publisher, reader))
    router.include_router(feedback.build_router(keys, publisher, reader))
    router.include_router(search.build_router(keys, reader, services.embedder))
    router.include_router(analytics.build_router(keys, reader))
    routes = consent.ConsentRoutes(
        keys=keys, publisher=publisher, reader=reader, consents=services.consents, topics=services.topics
    )
    router.include_router(consent.build_router(routes))
    return router


def _tenancy(settings: Settings, services: Services) -> APIRouter:
    """Who the customers are, what they may and what they used."""
    router = APIRouter()
    keys, key_admin = services.keys, services.key_admin
    own = OwnKeys(keys=keys, key_admin=key_admin, tokens=services.tokens, ttl_s=settings.jwt_ttl_s)
    router.include_router(own_keys.build_router(own))
    routes = CustomerRoutes(keys=keys, customers=services.customers, key_admin=key_admin, reader=services.reader)
    router.include_router(customers.build_router(routes))
    return router


def _console(services: Services) -> ConsoleServices:
    return ConsoleServices(
        keys=services.keys,
        reader=services.reader,
        cards=services.cards,
        workers=services.workers,
        group_lag=services.group_lag,
        robots=services.robots,
        publisher=services.publisher,
        stops=services.stops,
        stops_known=services.stops_known,
        log=services.log,
        letters=services.letters,
        sent_forms=services.sent_forms,
        embedder=services.embedder,
        key_admin=services.key_admin,
        customers=services.customers,
        consents=services.consents,
        topics=services.topics,
    )


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        own = openapi.components(_BODIES)
        parts = document.setdefault("components", {})
        for name, content in own.items():
            parts.setdefault(name, {}).update(content)
        openapi.drop_framework_errors(document)
        app.openapi_schema = document
    return app.openapi_schema


def _version() -> str:
    try:
        return importlib.metadata.version("vlastream")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
