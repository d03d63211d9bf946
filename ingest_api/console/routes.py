"""Puts the console together: the frame, the login, and each page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, FastAPI

from ingest_api.consent import ConsentRoutes
from ingest_api.console.assets import Assets
from ingest_api.console.consent import ConsentPage
from ingest_api.console.control import ControlPage
from ingest_api.console.customers import CustomersPage
from ingest_api.console.dead_letters import DeadLetterPages
from ingest_api.console.episodes import EpisodePages
from ingest_api.console.fleet import FleetPage
from ingest_api.console.frame import Frame
from ingest_api.console.keys import KeyPages
from ingest_api.console.letter_desk import LetterPort
from ingest_api.console.log_frames import LogPort
from ingest_api.console.login import LoginPage
from ingest_api.console.requests import RequestPages
from ingest_api.console.search import SearchPages
from ingest_api.console.sent_forms import SentForms
from ingest_api.console.session import ROOT, Doorkeeper
from ingest_api.control import ControlRoute
from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import KeyAdmin
from ingest_api.keys import KeyRing
from ingest_api.reading import Reader
from ingest_api.search import QueryEmbedder
from ingest_api.upkeep import reporter
from runtime.consent import ConsentList
from runtime.control import StopList
from runtime.embodiments import RobotTypes
from runtime.group_lag import GroupLag
from runtime.publisher import PublisherPort
from runtime.settings import Settings
from runtime.workers import LiveWorkers
from schemas.cards import CardSet
from schemas.topics import Topic


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleServices:
    """What the pages stand on: what the REST routes stand on."""

    keys: KeyRing
    reader: Reader
    cards: CardSet
    workers: LiveWorkers
    group_lag: GroupLag
    robots: RobotTypes
    publisher: PublisherPort
    stops: StopList
    stops_known: Callable[[], bool]
    log: LogPort
    letters: LetterPort
    sent_forms: SentForms
    embedder: QueryEmbedder
    key_admin: KeyAdmin
    customers: CustomerAdmin
    consents: ConsentList
    topics: list[Topic]


def install(app: FastAPI, settings: Settings, services: ConsoleServices) -> None:
    """Adds the console to an application, at /console."""
    router = APIRouter()
    doorkeeper = Doorkeeper(
        services.keys,
        settings.jwt_secret_key.get_secret_value(),
        https_only=settings.environment == "production",
    )
    frame = Frame(router, doorkeeper, services.sent_forms)
    LoginPage(frame)
    FleetPage(
        frame, reader=services.reader, cards=services.cards, workers=services.workers, group_lag=services.group_lag
    )
    RequestPages(
        frame,
        reader=services.reader,
        robots=services.robots,
        log=services.log,
        kept_days=settings.kafka_retention_days,
        report=reporter(services.publisher),
    )
    route = ControlRoute(cards=services.cards, keys=services.keys, publisher=services.publisher)
    ControlPage(frame, route=route, cards=services.cards, stops=services.stops, stops_known=services.stops_known)
    _more(frame, settings, services)
    frame.has_nothing_else()
    app.mount(f"{ROOT}/static", Assets(), name="console files")
    app.include_router(router)


def _more(frame: Frame, settings: Settings, services: ConsoleServices) -> None:
    """What was kept, and who may what."""
    reader, log = services.reader, services.log
    EpisodePages(frame, reader=reader, robots=services.robots, log=log, kept_days=settings.kafka_retention_days)
    SearchPages(frame, reader=reader, embedder=services.embedder, log=log, report=reporter(services.publisher))
    KeyPages(frame, key_admin=services.key_admin)
    routes = ConsentRoutes(
        keys=services.keys,
        publisher=services.publisher,
        reader=reader,
        consents=services.consents,
        topics=services.topics,
    )
    ConsentPage(frame, routes=routes)
    CustomersPage(frame, customers=services.customers, reader=reader)
    DeadLetterPages(frame, letters=services.letters, publisher=services.publisher)
