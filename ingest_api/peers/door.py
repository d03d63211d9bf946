"""What the WebSocket protocols of peers share: the upgrade, one request after another, the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from fastapi import WebSocket

from ingest_api import websocket as ws
from ingest_api.credentials import as_bearer
from ingest_api.exchange import Actions, Exchange
from ingest_api.keys import KeyRing, origin_of
from ingest_api.peers.robot import Authenticate, PeerOptions, PeerRobot, card_of
from ingest_api.problems import Problem, problem_of
from ingest_api.query import parse_query
from ingest_api.sessions import Session, Sessions
from ingest_api.websocket import Socket, deny
from runtime.errors import VlastreamError
from runtime.publisher import PublisherPort
from runtime.settings import Settings
from schemas.cards import CardSet, ModelCard

log = logging.getLogger(__name__)

#: These clients do not come back by themselves, and people pause between episodes.
IDLE_TIMEOUT_S = 3600.0
#: How long an observation is worth acting on where time stands still while the caller waits.
PATIENT_TTL_MS = 25_000


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerServices:
    """What the peers' protocols stand on."""

    settings: Settings
    cards: CardSet
    exchange: Exchange
    keys: KeyRing
    sessions: Sessions
    publisher: PublisherPort


class Line:
    """One peer's connection after its upgrade: it asks, and is answered, one at a time."""

    def __init__(self, socket: Socket, session: Session, robot: PeerRobot, authenticate: Authenticate) -> None:
        self.socket = socket
        self.session = session
        self.robot = robot
        self._authenticate = authenticate
        self._stopping: asyncio.Task[None] | None = None
        self._stop = False
        session.on_stop = self._on_stop

    async def receive(self) -> str | bytes:
        """The next frame. Raises Gone, also where the process stops and nothing is owed any more."""
        if self._stop:
            await self._close()
        frame = await self.socket.receive(IDLE_TIMEOUT_S)
        self.session.seen()
        self.session.owed = 1
        return frame

    def answered(self) -> None:
        """The frame that was received last asks nothing more."""
        self.session.owed = 0

    async def ask(self, content: object, size_bytes: int) -> Actions:
        """Raises Problem."""
        self.session.asks(self.robot.robot_id)
        try:
            actions = await self.robot.ask(content, size_bytes, self._authenticate)
        except Problem:
            self.session.errors += 1
            raise
        self.session.chunks += 1
        return actions

    async def _close(self) -> None:
        await self.socket.close(ws.RESTART, "the service restarts: connect again")

    def _on_stop(self) -> None:
        self._stop = True
        if self.session.owed == 0:
            self._stopping = asyncio.create_task(self._close())


class Door:
    """Lets peers in."""

    def __init__(self, protocol: str, services: PeerServices) -> None:
        self.protocol = protocol
        self.services = services

    @asynccontextmanager
    async def opened(self, websocket: WebSocket, *, ttl_ms: int) -> AsyncIterator[Line | None]:
        """The line, once the key, the model and the URL's options are good; else None: the upgrade was refused."""
        services = self.services
        authorization = as_bearer(websocket.headers.get("authorization"))
        authenticate = partial(services.keys.authenticate, authorization, origin=origin_of(websocket))
        try:
            key = await authenticate()
            card = card_of(services.cards, websocket.path_params.get("model", ""))
            options = parse_query(websocket, PeerOptions)
            place = services.sessions.open(self.protocol, key.customer_id)
            session = place.__enter__()
        except VlastreamError as error:
            await deny(websocket, problem_of(error))
            yield None
            return
        try:
            robot = self._robot(card, options, session, ttl_ms)
            await websocket.accept()
            yield Line(Socket(websocket), session, robot, authenticate)
        finally:
            place.__exit__(None, None, None)

    def _robot(self, card: ModelCard, options: PeerOptions, session: Session, ttl_ms: int) -> PeerRobot:
        return PeerRobot(
            exchange=self.services.exchange,
            cards=self.services.cards,
            card=card,
            options=options,
            robot_id=f"{self.protocol}-{session.session_id[:8]}",
            ttl_ms=ttl_ms,
        )
