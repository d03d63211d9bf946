"""Puts the console together: the frame, the login, and each page."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import APIRouter, FastAPI

from ingest_api.console.assets import Assets
from ingest_api.console.fleet import FleetPage
from ingest_api.console.frame import Frame
from ingest_api.console.login import LoginPage
from ingest_api.console.session import ROOT, Doorkeeper
from ingest_api.keys import KeyRing
from ingest_api.reading import Reader
from runtime.group_lag import GroupLag
from runtime.settings import Settings
from runtime.workers import LiveWorkers
from schemas.cards import CardSet


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleServices:
    """What the pages stand on: what the REST routes stand on."""

    keys: KeyRing
    reader: Reader
    cards: CardSet
    workers: LiveWorkers
    group_lag: GroupLag


def install(app: FastAPI, settings: Settings, services: ConsoleServices) -> None:
    """Adds the console to an application, at /console."""
    router = APIRouter()
    doorkeeper = Doorkeeper(
        services.keys,
        settings.jwt_secret_key.get_secret_value(),
        https_only=settings.environment == "production",
    )
    frame = Frame(router, doorkeeper)
    LoginPage(frame)
    FleetPage(
        frame, reader=services.reader, cards=services.cards, workers=services.workers, group_lag=services.group_lag
    )
    app.mount(f"{ROOT}/static", Assets(), name="console files")
    app.include_router(router)
