"""WebSocket /v1/stream and GET /v1/stream/sessions."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Request, Response, WebSocket

from ingest_api import openapi
from ingest_api import websocket as ws
from ingest_api.credentials import as_bearer
from ingest_api.exchange import Exchange
from ingest_api.keys import KeyRing, origin_of
from ingest_api.problems import Problem, fault, problem_of
from ingest_api.reading import answer
from ingest_api.sessions import Session, Sessions
from ingest_api.stream import frames
from ingest_api.stream.conversation import Conversation, Requests
from ingest_api.stream.frames import UnreadableFrame
from ingest_api.websocket import Gone, Socket, deny, guarded
from runtime.errors import VlastreamError
from runtime.settings import Settings
from schemas.codes import Code

PROTOCOL = "vlastream"
#: Time for a connection without a header to say who it is.
HELLO_TIMEOUT_S = 10.0
_CLOSE_CODES = {Code.UNAUTHENTICATED: ws.UNAUTHENTICATED, Code.FORBIDDEN: ws.FORBIDDEN}


class StreamRoute:
    def __init__(
        self,
        *,
        settings: Settings,
        keys: KeyRing,
        exchange: Exchange,
        sessions: Sessions,
        hello_timeout_s: float = HELLO_TIMEOUT_S,
    ) -> None:
        self._settings = settings
        self._keys = keys
        self._exchange = exchange
        self._sessions = sessions
        self._requests = Requests(settings, exchange)
        self._hello_timeout_s = hello_timeout_s

    async def connect(self, websocket: WebSocket) -> None:
        """One connection, from the upgrade to its end."""
        origin = origin_of(websocket)
        authorization = as_bearer(websocket.headers.get("authorization"))
        subprotocol = frames.PROTOCOL if frames.PROTOCOL in websocket.scope.get("subprotocols", []) else None
        try:
            if authorization is not None:
                key = await self._keys.authenticate(authorization, origin=origin)
                with self._sessions.open(PROTOCOL, key.customer_id) as session:
                    await websocket.accept(subprotocol)
                    await self._talk(websocket, session, authorization)
                return
            with self._sessions.guest():
                await websocket.accept(subprotocol)
                said = await self._hello(Socket(websocket))
        except VlastreamError as error:
            await deny(websocket, problem_of(error))
            return
        if said is None:
            return
        socket = Socket(websocket)
        try:
            key = await self._keys.authenticate(said, origin=origin)
            with self._sessions.open(PROTOCOL, key.customer_id) as session:
                await self._talk(websocket, session, said)
        except VlastreamError as error:
            problem = problem_of(error)
            await _refuse(socket, problem, _CLOSE_CODES.get(Code(problem.code), ws.TRY_LATER))

    async def _hello(self, socket: Socket) -> str | None:
        """The header that a first frame stands for; None: the connection is over."""
        try:
            frame = await socket.receive(self._hello_timeout_s)
            if isinstance(frame, str):
                said = frames.read_text(frame, self._settings.max_body_bytes)
                if isinstance(said, frames.Hello):
                    return f"Bearer {said.key}"
            detail = "without a key in the header the first frame is a `hello` with it"
            problem = Problem(Code.UNAUTHENTICATED, detail, violations=[fault("type", "unexpected", detail)])
            await _refuse(socket, problem, ws.UNAUTHENTICATED)
        except UnreadableFrame as error:
            await _refuse(socket, error.problem, ws.UNAUTHENTICATED)
        except TimeoutError:
            await socket.close(ws.IDLE, "no hello in time")
        except Gone:
            pass
        return None

    async def _talk(self, websocket: WebSocket, session: Session, authorization: str) -> None:
        conversation = Conversation(
            socket=Socket(websocket),
            session=session,
            requests=self._requests,
            exchange=self._exchange,
            authenticate=partial(self._keys.authenticate, authorization, origin=origin_of(websocket)),
            settings=self._settings,
        )
        await conversation.run()

    async def listed(self, request: Request) -> Response:
        """The caller's own open sessions in this process."""
        key = await self._keys.of(request)
        return answer({"sessions": [session.document() for session in self._sessions.of(key.customer_id)]})


async def _refuse(socket: Socket, problem: Problem, code: int) -> None:
    try:
        await socket.send(frames.refusal(problem, None))
    except Gone:
        return
    await socket.close(code, problem.detail)


def build_router(route: StreamRoute) -> APIRouter:
    router = APIRouter(tags=["stream"])
    router.add_api_websocket_route("/v1/stream", guarded(route.connect))
    router.add_api_route(
        "/v1/stream/sessions",
        route.listed,
        methods=["GET"],
        summary="Your open WebSocket sessions in this process",
        response_class=Response,
        responses={**openapi.json_answer("StreamSessions", "open sessions"), **openapi.problems(401, 403, 503)},
        openapi_extra=openapi.SECURED,
    )
    return router
