"""WebSocket: `/v1/stream`, one connection for all robots of an event loop, which comes back by itself.

What is asked is kept until it is answered. After a drop the transport connects again, names what it still waits for,
and sends again what the server does not know, under the same ids: the log gives each the outcome that it already has.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

try:
    from websockets.asyncio.client import ClientConnection, connect
    from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
    from websockets.typing import Subprotocol
except ImportError as error:
    raise ImportError("WebSocketTransport needs websockets: install vlastream with its extra `client`") from error

from robot_client.chunk import ActionChunk, refusal_from_json
from robot_client.errors import AttemptFailed, Refused
from robot_client.retry import BackOff, refuse
from robot_client.stream_frames import (
    IDLE,
    KEY_REFUSED,
    SUBPROTOCOL,
    Answer,
    Frames,
    GoAway,
    Resumed,
    Unreadable,
    Welcome,
    read_frame,
    too_large,
    write_request,
    write_resume,
)
from schemas.codes import STATUS
from schemas.messages import InferenceRequest

log = logging.getLogger(__name__)

#: How long a server may take from the connection to its `welcome`, seconds.
WELCOME_TIMEOUT_S = 10.0
#: How often the connection is tried, and for how long an answer may stay out, seconds: a half-open one is noticed.
PING_S = 5.0
#: Largest frame that is read, bytes: answers hold numbers, not pictures.
LARGEST_ANSWER_BYTES = 4 * 2**20


@dataclass(slots=True)
class _Asked:
    """A request that somebody waits for. `sent`: some server may have it."""

    frame: str | bytes
    answer: asyncio.Future[Answer | AttemptFailed | Refused]
    sent: bool = False


@dataclass(slots=True)
class _Session:
    """One connection after its `welcome`. `unanswered` counts frames by request id: a retry is a frame more."""

    socket: ClientConnection
    welcome: Welcome
    unanswered: dict[str, int] = field(default_factory=dict)
    leaving: bool = False

    @property
    def has_room(self) -> bool:
        return not self.leaving and sum(self.unanswered.values()) < self.welcome.in_flight


class WebSocketTransport:
    """`url` is the API's base, as for RestTransport; `api_key` from `vlastream keys create`.

    Give the same transport to several AsyncRobotClients of one event loop, or to RobotClients that share a
    LoopThread: they share the connection, which opens with the first and closes with the last.
    open_timeout_s: for how long `open` tries to reach the service.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        *,
        frames: Frames = Frames.PROTOBUF,
        back_off: BackOff | None = None,
        open_timeout_s: float = 15.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._url = stream_url(url)
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._frames = frames
        self._back_off = back_off or BackOff()
        self._open_timeout_s = open_timeout_s
        self._sleep = sleep
        self._users = 0
        self._asked: dict[str, _Asked] = {}
        self._session: _Session | None = None
        #: Why the service lets nobody in with this key; what is asked meanwhile is refused.
        self._refusal: Refused | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._changed = asyncio.Condition()
        self._wanted = asyncio.Event()

    async def open(self) -> None:
        """Connected, or refused by the service itself, which each exchange then says."""
        self._users += 1
        if self._users == 1:
            self._refusal = None
            self._wanted.set()
            self._keeper = asyncio.create_task(self._keep(), name="robot-websocket")
        try:
            async with asyncio.timeout(self._open_timeout_s), self._changed:
                await self._changed.wait_for(lambda: self._session is not None or self._refusal is not None)
        except BaseException as error:
            await self.close()
            if isinstance(error, TimeoutError):
                text = f"the API at {self._url} did not answer within {self._open_timeout_s:.0f} s"
                raise ConnectionError(text) from error
            raise

    async def exchange(self, request: InferenceRequest, timeout_s: float) -> ActionChunk:
        if self._keeper is None:
            raise RuntimeError("open() the transport before the first exchange")
        request_id = request.request_id
        asked = _Asked(write_request(request, self._frames), asyncio.get_running_loop().create_future())
        self._asked[request_id] = asked
        try:
            async with asyncio.timeout(timeout_s):
                session = await self._session_with_room(request_id)
                await self._send(session, request_id, asked)
                answer = await asked.answer
        except TimeoutError as error:
            if asked.sent:
                raise AttemptFailed(f"no answer within {timeout_s:.2f} s", timed_out=True) from error
            raise AttemptFailed(f"no room on the connection within {timeout_s:.2f} s") from error
        finally:
            if self._asked.get(request_id) is asked:
                del self._asked[request_id]
        if isinstance(answer, Answer):
            return answer.read()
        raise answer

    async def close(self) -> None:
        self._users -= 1
        if self._users > 0 or self._keeper is None:
            return
        keeper, self._keeper = self._keeper, None
        self._wanted.clear()
        if self._session is not None:
            # A goodbye, where ending the keeper alone would look like a fault of this side.
            await self._session.socket.close()
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
        for asked in self._asked.values():
            _settle(asked, AttemptFailed("the transport was closed"))

    async def _session_with_room(self, request_id: str) -> _Session:
        """Waits until the server takes one more. Raises AttemptFailed or Refused where it lets nobody in."""
        self._refusal = None
        self._wanted.set()
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._refusal is not None or (self._session is not None and self._session.has_room)
            )
        if self._session is None or self._refusal is not None:
            raise refuse(_with_id(self._refusal, request_id))
        return self._session

    async def _send(self, session: _Session, request_id: str, asked: _Asked) -> None:
        if len(asked.frame) > session.welcome.frame_bytes:
            raise too_large(request_id, len(asked.frame), session.welcome.frame_bytes)
        asked.sent = True
        session.unanswered[request_id] = session.unanswered.get(request_id, 0) + 1
        # A connection that drops meanwhile is mended by the keeper, which sends again.
        with suppress(ConnectionClosed):
            await session.socket.send(asked.frame)

    async def _keep(self) -> None:
        """Connects, serves, and connects again, until it is cancelled."""
        failures = 0
        while True:
            await self._wanted.wait()
            try:
                pause_s, useful = await self._serve()
                failures = 0 if useful else failures + 1
                pause_s = max(pause_s, self._back_off.pause_s(failures, lot=random.random()))
            except InvalidStatus as error:
                pause_s = await self._refused(_refusal_of(error))
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed, Unreadable) as error:
                failures += 1
                pause_s = self._back_off.pause_s(failures, lot=random.random())
                log.info("no connection to %s, next try in %.2f s: %r", self._url, pause_s, error)
            await self._sleep(pause_s)

    async def _serve(self) -> tuple[float, bool]:
        """One connection from its beginning to its end.

        Returns how long the server wants to be left alone, seconds, and whether it said anything after `welcome`.
        """
        async with connect(
            self._url,
            additional_headers=self._headers,
            subprotocols=[Subprotocol(SUBPROTOCOL)],
            compression=None,
            # A robot's traffic to its own service never goes by a proxy of the environment.
            proxy=None,
            open_timeout=WELCOME_TIMEOUT_S,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            close_timeout=1.0,
            max_size=LARGEST_ANSWER_BYTES,
        ) as socket:
            session = _Session(socket, await _welcomed(socket))
            pause_s, useful = 0.0, False
            try:
                await self._enter(session)
                async for content in socket:
                    useful = True
                    pause_s = max(pause_s, await self._take(session, content))
            except ConnectionClosed:
                log.info("the connection to %s dropped", self._url)
            finally:
                # Not under the lock: a cancelled keeper must not wait here.
                self._session = None
            return max(pause_s, await self._after(socket.close_code)), useful

    async def _enter(self, session: _Session) -> None:
        """The session serves from now on; what was in flight before it is resumed first."""
        waiting = [request_id for request_id, asked in self._asked.items() if asked.sent]
        session.unanswered.update(dict.fromkeys(waiting, 1))
        limit = session.welcome.resume_ids
        for first in range(0, len(waiting), limit):
            await session.socket.send(write_resume(waiting[first : first + limit]))
        await self._change(session=session, refusal=None)

    async def _take(self, session: _Session, content: str | bytes) -> float:
        """Handles one frame. Returns for how long the server wants to be left alone, seconds."""
        try:
            frame = read_frame(content)
        except Unreadable as error:
            log.warning("%s", error)
            return 0.0
        if isinstance(frame, Answer):
            await self._answered(session, frame)
        elif isinstance(frame, Resumed):
            for request_id in frame.unknown:
                session.unanswered.pop(request_id, None)
                if (asked := self._asked.get(request_id)) is not None:
                    await self._send(session, request_id, asked)
        elif isinstance(frame, GoAway):
            session.leaving = True
            return frame.retry_after_s
        return 0.0

    async def _answered(self, session: _Session, answer: Answer) -> None:
        left = session.unanswered.get(answer.request_id, 0) - 1
        if left > 0:
            session.unanswered[answer.request_id] = left
        else:
            session.unanswered.pop(answer.request_id, None)
        if (asked := self._asked.get(answer.request_id)) is not None:
            _settle(asked, answer)
        elif not answer.request_id:
            log.warning("the server could not read a frame: %s", answer.content)
        async with self._changed:
            self._changed.notify_all()

    async def _after(self, close_code: int | None) -> float:
        """What a close code asks for. Returns a pause, seconds."""
        if close_code == IDLE and not self._asked:
            self._wanted.clear()
        code = KEY_REFUSED.get(close_code or 0)
        if code is not None:
            text = f"refused as {code} (closed with {close_code}: use another key)"
            return await self._refused(Refused(text, code=code, status=STATUS[code], request_id=""))
        return 0.0

    async def _refused(self, refusal: Refused) -> float:
        """Nobody is let in: whoever waits hears it, and the next try is made when somebody asks again."""
        self._wanted.clear()
        for request_id, asked in self._asked.items():
            _settle(asked, refuse(_with_id(refusal, request_id)))
        await self._change(session=None, refusal=refusal)
        return refusal.retry_after_s

    async def _change(self, *, session: _Session | None, refusal: Refused | None) -> None:
        async with self._changed:
            self._session, self._refusal = session, refusal
            self._changed.notify_all()


def stream_url(url: str) -> str:
    """The address of `/v1/stream` at an API's base address. Raises ValueError for what is no HTTP address."""
    parts = urlsplit(url)
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.netloc:
        raise ValueError(f"{url!r} is not the address of an API: use http://HOST:PORT")
    return urlunsplit((schemes[parts.scheme], parts.netloc, parts.path.rstrip("/") + "/v1/stream", "", ""))


async def _welcomed(socket: ClientConnection) -> Welcome:
    """Raises TimeoutError, ConnectionClosed, or Unreadable where something else comes first."""
    async with asyncio.timeout(WELCOME_TIMEOUT_S):
        frame = read_frame(await socket.recv())
    if not isinstance(frame, Welcome):
        raise Unreadable("the server did not begin with welcome: is this vlastream's /v1/stream?")
    return frame


def _refusal_of(error: InvalidStatus) -> Refused:
    """The refusal in an HTTP answer to the upgrade."""
    response = error.response
    try:
        body = json.loads(response.body or b"")
    except ValueError:
        body = None
    try:
        retry_after_s = max(float(response.headers.get("retry-after", "")), 0.0)
    except ValueError:
        retry_after_s = 0.0
    return refusal_from_json(
        body if isinstance(body, dict) else {},
        status=response.status_code,
        request_id="",
        retry_after_s=retry_after_s,
    )


def _with_id(refusal: Refused | None, request_id: str) -> Refused:
    """The refusal of a connection as that of one request."""
    assert refusal is not None
    return Refused(
        str(refusal),
        code=refusal.code,
        status=refusal.status,
        request_id=request_id,
        violations=refusal.violations,
        retry_after_s=refusal.retry_after_s,
    )


def _settle(asked: _Asked, answer: Answer | AttemptFailed | Refused) -> None:
    if not asked.answer.done():
        asked.answer.set_result(answer)
