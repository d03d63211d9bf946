"""One session of /v1/stream: frames are read, requests go to the log, answers go out as they come."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from ingest_api import websocket as ws
from ingest_api.admission import Slot
from ingest_api.exchange import Case, Exchange
from ingest_api.key_stores import KeyRecord
from ingest_api.problems import Problem, fault
from ingest_api.replies import Reply
from ingest_api.request_body import build_request
from ingest_api.sessions import Session
from ingest_api.stream import frames
from ingest_api.stream.frames import Infer, UnreadableFrame
from ingest_api.stream.kept import Asked, KeptAnswers, Owner
from ingest_api.websocket import Gone, Socket
from runtime.errors import VlastreamError
from runtime.settings import Settings
from schemas.codes import Code
from schemas.messages import InferenceRequest

#: Frames that wait to be sent before the next one is read.
_MOST_WAITING = 32
_RESTART_S = 1.0


@dataclass(frozen=True, slots=True)
class _Out:
    """A frame on its way out. answers: a request of this session is no longer owed once it is sent."""

    content: str | bytes
    answers: bool = False


@dataclass(frozen=True, slots=True)
class _Close:
    code: int
    reason: str


class Requests:
    """Requests of all sessions, from the frame to the answer: they outlive the session that asked."""

    def __init__(self, settings: Settings, exchange: Exchange) -> None:
        self._settings = settings
        self._exchange = exchange
        self.kept = KeptAnswers()
        self._tasks: set[asyncio.Task[None]] = set()

    def send(
        self, asked_for: Infer | InferenceRequest, size_bytes: int, key: KeyRecord, case: Case, owner: Owner
    ) -> Asked:
        """Hand a request to the log; `owner` hears once of it, when it is settled or taken over.

        Raises Problem and the like where the log does not get it.
        """
        with ExitStack() as stack:
            slot = stack.enter_context(self._exchange.admit(key, size_bytes))
            future = self._publish(asked_for, key, case, slot)
            held = stack.pop_all()
        asked = Asked(key.customer_id, case, binary=isinstance(asked_for, InferenceRequest), owner=owner)
        self.kept.open(asked)
        task = asyncio.create_task(self._wait(asked, future, slot, held))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return asked

    def frame(self, asked: Asked, *, again: bool = False) -> tuple[str | bytes, bool]:
        """The answer, and whether it is a chunk. again: it may have been heard before."""
        case = asked.case
        try:
            if asked.failure is not None:
                raise asked.failure
            assert asked.reply is not None
            reply = replace(asked.reply, replayed=asked.reply.replayed or again)
            actions = self._exchange.actions(reply, case)
        except VlastreamError as error:
            problem = self._exchange.refused(error, case)
            return frames.refusal(problem, case.request_id, binary=asked.binary), False
        self._exchange.answered(case)
        return frames.chunk(actions, binary=asked.binary), True

    def _publish(
        self, asked_for: Infer | InferenceRequest, key: KeyRecord, case: Case, slot: Slot
    ) -> asyncio.Future[Reply]:
        if isinstance(asked_for, InferenceRequest):
            self._exchange.name(case, model=asked_for.model, robot_type=asked_for.robot_type)
            asked_for.model = case.model
            return self._exchange.send(asked_for, case, key, slot)[0]
        cards = self._exchange.name(case, model=asked_for.model or "", robot_type=asked_for.robot_type)
        message = build_request(
            asked_for,
            request_id=case.request_id,
            model=case.model,
            first_camera=cards[0].cameras[0],
            default_ttl_ms=self._settings.default_ttl_ms,
        )
        return self._exchange.send(message, case, key, slot, asked_for.traceparent)[0]

    async def _wait(self, asked: Asked, future: asyncio.Future[Reply], slot: Slot, held: ExitStack) -> None:
        with held:
            try:
                asked.reply = await self._exchange.reply(future)
                slot.served()
            except VlastreamError as error:
                asked.failure = error
        self.kept.settle(asked)
        if asked.owner is not None:
            asked.owner.settled(asked)
        else:
            self._exchange.left(asked.case)


class Conversation:
    """Reads and writes one session until either side ends it.

    authenticate: the session's key, looked at again for every request. Raises Problem 401 or 403.
    """

    def __init__(
        self,
        *,
        socket: Socket,
        session: Session,
        requests: Requests,
        exchange: Exchange,
        authenticate: Callable[[], Awaitable[KeyRecord]],
        settings: Settings,
    ) -> None:
        self._socket = socket
        self._session = session
        self._requests = requests
        self._exchange = exchange
        self._authenticate = authenticate
        self._settings = settings
        self._outbox: asyncio.Queue[_Out | _Close] = asyncio.Queue()
        self._room = asyncio.Event()
        self._mine: set[Asked] = set()
        self._stopping = False

    async def run(self) -> None:
        session, settings = self._session, self._settings
        limits = {
            "in_flight": settings.stream_max_in_flight,
            "frame_bytes": settings.stream_max_frame_bytes,
            "body_bytes": settings.max_body_bytes,
            "resume_ids": frames.MOST_RESUMED,
        }
        idle_s = settings.stream_idle_timeout_s
        self._put(
            frames.welcome(
                session.session_id,
                limits=limits,
                idle_timeout_s=idle_s,
                resume_window_s=self._requests.kept.window_s,
            )
        )
        session.on_stop = self._stop
        both = {asyncio.create_task(self._read(idle_s)), asyncio.create_task(self._write())}
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with suppress(Gone):
                    task.result()
        finally:
            # Who comes back for them asks for them; until then nobody is there.
            for asked in self._mine:
                asked.owner = None
            for task in both:
                task.cancel()
            await asyncio.wait(both)

    async def _read(self, idle_s: float) -> None:
        while True:
            while self._outbox.qsize() >= _MOST_WAITING:
                self._room.clear()
                await self._room.wait()
            try:
                frame = await self._socket.receive(idle_s)
            except TimeoutError:
                if self._session.owed == 0 and self._outbox.empty():
                    self._outbox.put_nowait(_Close(ws.IDLE, "idle: connect again when there is something to ask"))
                continue
            self._session.seen()
            await self._take(frame)

    async def _take(self, frame: str | bytes) -> None:
        case = self._exchange.begin()
        try:
            if isinstance(frame, bytes):
                message = frames.read_binary(frame)
                await self._infer(message, message.request_id, message.robot_id, len(frame), case)
                return
            match frames.read_text(frame, self._settings.max_body_bytes):
                case Infer() as infer:
                    await self._infer(infer, infer.request_id, infer.robot_id, len(frame), case)
                case frames.Ping(nonce=nonce):
                    self._put(frames.pong(nonce))
                case frames.Resume(request_ids=request_ids):
                    self._resume(list(dict.fromkeys(request_ids)))
                case frames.Hello():
                    detail = "this session has its key already: `hello` is for connections without one"
                    problem = Problem(Code.MALFORMED, detail, violations=[fault("type", "unexpected", detail)])
                    raise UnreadableFrame(problem)
        except UnreadableFrame as error:
            self._session.errors += 1
            self._put(frames.refusal(self._exchange.refused(error.problem, case), error.request_id))

    async def _infer(
        self, asked_for: Infer | InferenceRequest, request_id: str, robot_id: str, size_bytes: int, case: Case
    ) -> None:
        case.request_id = request_id
        try:
            key = await self._authenticate()
            self._check_room()
            await self._exchange.allow(case, key)
            await self._exchange.allow_robot(key, asked_for.robot_id)
            asked = self._requests.send(asked_for, size_bytes, key, case, self)
        except VlastreamError as error:
            problem = self._exchange.refused(error, case)
            self._session.errors += 1
            self._put(frames.refusal(problem, request_id, binary=isinstance(asked_for, InferenceRequest)))
            if problem.code in (Code.UNAUTHENTICATED, Code.FORBIDDEN):
                code = ws.UNAUTHENTICATED if problem.code == Code.UNAUTHENTICATED else ws.FORBIDDEN
                self._outbox.put_nowait(_Close(code, problem.detail))
            return
        self._mine.add(asked)
        self._session.asks(robot_id)
        self._session.owed += 1

    def _check_room(self) -> None:
        """Raises Problem where this session may not ask now."""
        if self._stopping:
            raise Problem(Code.UNAVAILABLE, "this process is stopping: connect again", retry_after_s=_RESTART_S)
        if self._session.owed >= self._settings.stream_max_in_flight:
            detail = f"{self._session.owed} requests of this session are unanswered: read an answer first"
            violation = fault("session", "in_flight", detail)
            raise Problem(Code.QUOTA, detail, violations=[violation], retry_after_s=self._exchange.retry_after_s())

    def _resume(self, request_ids: list[str]) -> None:
        kept, customer_id = self._requests.kept, self._session.customer_id
        pending: list[str] = []
        answered: list[Asked] = []
        unknown: list[str] = []
        for request_id in request_ids:
            asked = kept.pending(customer_id, request_id)
            if asked is not None:
                pending.append(request_id)
                if asked.owner is not self:
                    if asked.owner is not None:
                        asked.owner.taken_over(asked)
                    asked.owner = self
                    self._mine.add(asked)
                    self._session.owed += 1
                continue
            asked = kept.answered(customer_id, request_id)
            if asked is None:
                unknown.append(request_id)
            else:
                answered.append(asked)
        names = [asked.case.request_id for asked in answered]
        self._put(frames.resumed(pending=pending, answered=names, unknown=unknown))
        for asked in answered:
            content, _ = self._requests.frame(asked, again=True)
            self._put(content)

    def settled(self, asked: Asked) -> None:
        """As `Owner`: the answer goes out."""
        self._mine.discard(asked)
        content, is_chunk = self._requests.frame(asked)
        if is_chunk:
            self._session.chunks += 1
        else:
            self._session.errors += 1
        self._outbox.put_nowait(_Out(content, answers=True))

    def taken_over(self, asked: Asked) -> None:
        """As `Owner`: a later session of the same customer resumed it."""
        self._mine.discard(asked)
        self._session.owed -= 1
        self._close_if_done()

    def _put(self, content: str | bytes) -> None:
        self._outbox.put_nowait(_Out(content))

    def _stop(self) -> None:
        self._stopping = True
        self._put(frames.goaway(_RESTART_S))
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._stopping and self._session.owed == 0:
            self._outbox.put_nowait(_Close(ws.RESTART, "the service restarts: connect again"))

    async def _write(self) -> None:
        """Frames in their order, until one closes the session. Raises Gone where the peer takes none."""
        while True:
            item = await self._outbox.get()
            if isinstance(item, _Close):
                await self._socket.close(item.code, item.reason)
                return
            await self._socket.send(item.content)
            if item.answers:
                self._session.owed -= 1
                self._close_if_done()
            if self._outbox.qsize() < _MOST_WAITING:
                self._room.set()
