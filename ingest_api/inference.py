"""POST /v1/inference: a request becomes a record, its outcome becomes the answer."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import orjson
from fastapi import Request, Response
from google.protobuf.message import DecodeError

from ingest_api.admission import Admission, Slot
from ingest_api.answers import chunk_document, expired_problem, rejection_problem, timings_ms
from ingest_api.counting import InferenceCounts
from ingest_api.gateway import Gateway, NoReply, Question
from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing
from ingest_api.problems import Problem, fault, new_request_id, problem_of
from ingest_api.replies import Reply
from ingest_api.request_body import (
    InferenceBody,
    announced_bytes,
    build_request,
    check_record_size,
    parse_body,
    read_body,
)
from runtime.errors import VlastreamError
from runtime.settings import Settings
from runtime.workers import LiveWorkers
from schemas.cards import CardSet, ModelCard
from schemas.codes import Code
from schemas.messages import Outcome

log = logging.getLogger(__name__)

#: Time that the pipeline gets beyond a request's deadline to say itself that it expired.
GRACE_S = 0.5
#: nginx's status for a client that left before its answer; nobody reads it.
CLIENT_CLOSED_REQUEST = 499
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_FIELDS = frozenset(InferenceBody.model_fields)


@dataclass(slots=True)
class _Case:
    """One HTTP request on its way, as far as it is known."""

    received_us: int
    started: float
    request_id: str = field(default_factory=new_request_id)
    model: str = ""
    robot_type: str = ""
    published: bool = False
    replayed: bool = False
    #: How long the observation is worth acting on.
    ttl_s: float = float("inf")

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started


class InferenceRoute:
    def __init__(
        self,
        *,
        settings: Settings,
        cards: CardSet,
        gateway: Gateway,
        keys: KeyRing,
        admission: Admission,
        workers: LiveWorkers,
        counts: InferenceCounts,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._settings = settings
        self._cards = cards
        self._gateway = gateway
        self._keys = keys
        self._admission = admission
        self._workers = workers
        self._counts = counts
        self._now_us = now_us

    async def post(self, request: Request) -> Response:
        """Actions for one observation."""
        case = _Case(received_us=self._now_us(), started=time.perf_counter())
        try:
            reply = await self._exchange(request, case)
            if reply is None:
                self._counts.answered(case.model, case.robot_type, "disconnected", case.elapsed_s)
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            document = self._answer(reply, case)
        except VlastreamError as error:
            return self._refused(error, case)
        if not case.replayed:
            self._counts.answered(case.model, case.robot_type, "success", case.elapsed_s)
        return Response(document, media_type="application/json")

    async def _exchange(self, request: Request, case: _Case) -> Reply | None:
        """The reply to a request; None if its client left. Raises Problem and the like."""
        key = await self._keys.authenticate(request.headers.get("authorization"))
        # Before the body is read, so that a refusal for want of room costs next to nothing.
        limit_bytes = self._settings.max_body_bytes
        with self._admission.admit(key.customer_id, announced_bytes(request, limit_bytes)) as slot:
            # Body and message live in `_send` alone: nothing of them is held while the pipeline works.
            future, timeout_s = self._send(await read_body(request, limit_bytes), request, case, key, slot)
            loop = asyncio.get_running_loop()
            end_s = loop.time() + timeout_s
            reply = await _unless_client_leaves(future, request)
            if reply is not None:
                slot.served()
            else:
                # The pipeline goes on with it: leaving early must not make room for more.
                loop.call_at(end_s, slot.hand_over())
            return reply

    def _send(
        self, raw: bytes, request: Request, case: _Case, key: KeyRecord, slot: Slot
    ) -> tuple[asyncio.Future[Reply], float]:
        """Hand the request to the log: its reply to come, and for how long it is waited for, in seconds."""
        body = parse_body(raw, InferenceBody)
        if body.request_id is not None:
            case.request_id = body.request_id
        case.model = body.model or self._cards.default_model or ""
        case.robot_type = body.robot_type
        cards = self._served(case.model)
        message = build_request(
            body,
            request_id=case.request_id,
            model=case.model,
            first_camera=cards[0].cameras[0],
            default_ttl_ms=self._settings.default_ttl_ms,
        )
        value, robot_id = message.SerializeToString(), body.robot_id.encode()
        check_record_size(value, robot_id)
        traceparent = request.headers.get("traceparent", "")
        question = Question(
            value=value,
            robot_id=robot_id,
            request_id=case.request_id,
            customer_id=key.customer_id,
            traceparent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
        )
        ttl_ms = message.ttl_ms
        if not 0 < ttl_ms <= self._settings.max_ttl_ms:
            ttl_ms = self._settings.default_ttl_ms
        case.ttl_s = ttl_ms / 1000
        timeout_s = case.ttl_s + GRACE_S
        future = self._gateway.ask(question, timeout_s, slot.record_settled)
        slot.record_sent(len(value))
        case.published = True
        return future, timeout_s

    def _served(self, model: str) -> tuple[ModelCard, ...]:
        """The deployments of a model, one of them alive at least. Raises Problem 404 or 503."""
        cards = self._cards.deployments(model)
        if not cards:
            known = ", ".join(sorted({card.model for card in self._cards.models})) or "none"
            detail = f"this model is not served; known are: {known}"
            raise Problem(Code.UNKNOWN_MODEL, detail, violations=[fault("model", "unknown_model", detail)])
        live = {beat.deployment for beat in self._workers.live()}
        if not any(card.deployment in live for card in cards):
            detail = f"no GPU worker of {model} is alive"
            violation = fault("model", "no_live_worker", detail)
            raise Problem(Code.NO_WORKER, detail, violations=[violation], retry_after_s=2.0)
        return cards

    def _answer(self, reply: Reply, case: _Case) -> bytes:
        """The body of a 200. Raises Problem for everything else."""
        case.replayed = reply.replayed
        try:
            outcome = Outcome.FromString(reply.value)
        except DecodeError as error:
            raise _unreadable(case) from error
        if not reply.replayed:
            self._counts.outcome(outcome)
        kind = outcome.WhichOneof("kind")
        timings = self._timings(outcome, case)
        if kind == "rejection":
            raise rejection_problem(outcome, replayed=reply.replayed, timings=timings)
        if kind != "chunk" or not _is_matrix(outcome):
            raise _unreadable(case)
        # The deadline counts from the broker's append, which an outage of Kafka delays: the frame is older then.
        expired = reply.expired or self._now_us() / 1000 > outcome.request.deadline_ms or case.elapsed_s > case.ttl_s
        if expired and not reply.replayed:
            raise expired_problem()
        document = chunk_document(outcome, timings=timings, replayed=reply.replayed, expired=expired)
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)

    def _timings(self, outcome: Outcome, case: _Case) -> dict[str, float]:
        # Elapsed time is monotonic, so that a clock that is set meanwhile does not bend the total.
        answered_us = case.received_us + round(case.elapsed_s * 1e6)
        if case.replayed:
            return {"total": (answered_us - case.received_us) / 1000}
        return timings_ms(outcome.times, received_us=case.received_us, answered_us=answered_us)

    def _refused(self, error: VlastreamError, case: _Case) -> Response:
        problem = problem_of(error)
        if not case.replayed:
            self._counts.answered(case.model, case.robot_type, problem.code, case.elapsed_s)
        if not case.published:
            self._counts.refused_before_produce(problem.code)
            for violation in problem.violations:
                self._counts.malformed(violation["field"], violation["reason"], _FIELDS)
        if problem is not error:
            log.warning(
                "%s", error, extra={"action": "refuse", "reason": problem.code, "request_id": case.request_id[:64]}
            )
        return problem.response(case.request_id)


async def _unless_client_leaves(future: asyncio.Future[Reply], request: Request) -> Reply | None:
    """The reply, or None once the client is gone. Raises Problem 504 without a reply, and Unavailable."""
    watch = asyncio.create_task(_disconnected(request))
    watch.add_done_callback(lambda _: future.cancel())
    try:
        return await future
    except NoReply as error:
        if not error.acknowledged:
            detail = "Kafka did not take the request in time: send it again under the same request_id"
            raise Problem(Code.UNAVAILABLE, detail, retry_after_s=1.0) from error
        detail = "no answer within ttl_ms: ask again under the same request_id, or send a new observation"
        raise Problem(Code.TIMEOUT, detail, members={"recorded": False}) from error
    except asyncio.CancelledError:
        if watch.done() and not watch.cancelled():
            return None
        raise
    finally:
        watch.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _is_matrix(outcome: Outcome) -> bool:
    matrix = outcome.chunk.actions
    return len(matrix.values) == matrix.horizon * matrix.dim


def _unreadable(case: _Case) -> Problem:
    log.error("an outcome cannot be read", extra={"action": "bad_outcome", "request_id": case.request_id[:64]})
    return Problem(Code.INTERNAL, "the pipeline gave an answer that this API cannot read")
