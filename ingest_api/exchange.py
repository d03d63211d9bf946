"""One request from its message to its outcome: the path of every protocol, through the same checks and counts."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from ingest_api.admission import Admission, Slot
from ingest_api.answers import expired_problem, rejection_problem, timings_ms
from ingest_api.counting import InferenceCounts
from ingest_api.gateway import Gateway, NoReply, Question
from ingest_api.key_stores import KeyRecord
from ingest_api.limits import Allowance, Limits
from ingest_api.problems import Problem, fault, new_request_id, problem_of
from ingest_api.replies import Reply
from ingest_api.request_body import InferenceBody, check_record_size
from runtime.errors import VlastreamError
from runtime.settings import Settings
from runtime.tracing import Kind, NoTracing, Span, Tracing, log_fields
from runtime.workers import LiveWorkers
from schemas.cards import CardSet, ModelCard
from schemas.codes import Code
from schemas.messages import InferenceRequest, Outcome

log = logging.getLogger(__name__)

#: Time that the pipeline gets beyond a request's deadline to say itself that it expired.
GRACE_S = 0.5
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_FIELDS = frozenset(InferenceBody.model_fields)


@dataclass(slots=True)
class Case:
    """One request on its way, as far as it is known."""

    received_us: int
    started: float
    request_id: str = field(default_factory=new_request_id)
    model: str = ""
    robot_type: str = ""
    published: bool = False
    #: What the customer's limits let it in by; its headers go with the answer. None: nobody has asked yet.
    allowance: Allowance | None = None
    replayed: bool = False
    #: Begun once the request is sent to the log.
    span: Span | None = None
    #: How long the observation is worth acting on.
    ttl_s: float = float("inf")

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started


@dataclass(frozen=True, slots=True)
class Actions:
    """An outcome with a chunk of the right shape. expired: it must not be executed."""

    outcome: Outcome
    timings_ms: dict[str, float]
    replayed: bool
    expired: bool


class Exchange:
    """Requests to the log, outcomes back. A protocol authenticates, asks the limits, asks for a place, sends,
    waits and reads.

    It holds a message no longer than `send` runs: nothing of a body is kept while the pipeline works.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        cards: CardSet,
        gateway: Gateway,
        admission: Admission,
        workers: LiveWorkers,
        limits: Limits,
        counts: InferenceCounts,
        tracing: Tracing | None = None,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._settings = settings
        self._cards = cards
        self._gateway = gateway
        self._admission = admission
        self._workers = workers
        self._limits = limits
        self._counts = counts
        self._tracing = tracing or NoTracing()
        self._now_us = now_us

    def begin(self) -> Case:
        """A request has arrived."""
        return Case(received_us=self._now_us(), started=time.perf_counter())

    async def allow(self, case: Case, key: KeyRecord) -> None:
        """Count the request against the limits of its key and its customer. Raises Problem 429 over one of them."""
        case.allowance = Allowance()
        case.allowance = await self._limits.take(key)

    async def allow_robot(self, key: KeyRecord, robot_id: str) -> None:
        """Raises Problem 429 for one robot too many today."""
        await self._limits.admit_robot(key, robot_id)

    def largest_bytes(self, key: KeyRecord) -> int:
        """How large a request of this customer may be."""
        own = key.limits.max_payload_bytes
        return self._settings.max_body_bytes if own is None else min(own, self._settings.max_body_bytes)

    def admit(self, key: KeyRecord, size_bytes: int) -> Slot:
        """A place, to be used in a `with` block. Raises Problem 429 or 503."""
        return self._admission.admit(key.customer_id, size_bytes)

    def retry_after_s(self) -> float:
        """When a place will be free, from the measured service rate."""
        return self._admission.retry_after_s(1.0)

    def name(self, case: Case, *, model: str, robot_type: str) -> tuple[ModelCard, ...]:
        """Say what a case is about. The deployments of its model; empty `model`: the default one.

        Raises Problem 404 for an unknown model, 503 where no worker of it is alive.
        """
        case.model = model or self._cards.default_model or ""
        case.robot_type = robot_type
        return self.served(case.model)

    def served(self, model: str) -> tuple[ModelCard, ...]:
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

    def send(
        self, message: InferenceRequest, case: Case, key: KeyRecord, slot: Slot, traceparent: str = ""
    ) -> tuple[asyncio.Future[Reply], float]:
        """Hand a request to the log: its reply to come, and for how long it is waited for, in seconds.

        Raises Problem 413 for what the broker would not take, Overloaded and Unavailable.
        """
        if case.allowance is None:
            raise RuntimeError("a request is sent that no limit was asked about: call `allow` first")
        value, robot_id = message.SerializeToString(), message.robot_id.encode()
        check_record_size(value, robot_id)
        if len(value) > (own := key.limits.max_payload_bytes or len(value)):
            detail = f"the request makes a message of {len(value)} bytes: this customer may send {own}"
            raise Problem(Code.TOO_LARGE, detail, violations=[fault("body", "max_payload_bytes", detail)])
        case.span = self._tracing.start(
            "request",
            parent=traceparent if _TRACEPARENT.fullmatch(traceparent) else "",
            start_us=case.received_us,
            kind=Kind.SERVER,
            attributes={"vlastream.request_id": case.request_id[:64], "vlastream.model": case.model},
        )
        question = Question(
            value=value,
            robot_id=robot_id,
            request_id=case.request_id,
            customer_id=key.customer_id,
            traceparent=case.span.traceparent,
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

    async def reply(self, future: asyncio.Future[Reply]) -> Reply:
        """The reply. Raises Problem 504 or 503 without one, and Unavailable."""
        try:
            return await future
        except NoReply as error:
            if not error.acknowledged:
                detail = "Kafka did not take the request in time: send it again under the same request_id"
                raise Problem(Code.UNAVAILABLE, detail, retry_after_s=1.0) from error
            detail = "no answer within ttl_ms: ask again under the same request_id, or send a new observation"
            raise Problem(Code.TIMEOUT, detail, members={"recorded": False}) from error

    def outcome(self, reply: Reply, case: Case) -> Outcome:
        """What a reply holds, counted. Raises Problem 500 for what cannot be read."""
        case.replayed = reply.replayed
        try:
            outcome = Outcome.FromString(reply.value)
        except DecodeError as error:
            raise _unreadable(case) from error
        kind = outcome.WhichOneof("kind")
        if kind is None or (kind == "chunk" and not _is_matrix(outcome)):
            raise _unreadable(case)
        if not reply.replayed:
            self._counts.outcome(outcome)
            if reply.traceparent:
                self._tracing.start("reply", parent=reply.traceparent, start_us=outcome.times.action_gate_end_us).end()
        return outcome

    def actions(self, reply: Reply, case: Case) -> Actions:
        """The actions in a reply. Raises Problem for a refusal, for what came too late and what cannot be read."""
        outcome = self.outcome(reply, case)
        timings = self._timings(outcome, case)
        if outcome.HasField("rejection"):
            raise rejection_problem(outcome, replayed=reply.replayed, timings=timings)
        # The deadline counts from the broker's append, which an outage of Kafka delays: the frame is older then.
        expired = reply.expired or self._now_us() / 1000 > outcome.request.deadline_ms or case.elapsed_s > case.ttl_s
        if expired and not reply.replayed:
            raise expired_problem()
        return Actions(outcome, timings, reply.replayed, expired)

    def answered(self, case: Case) -> None:
        """The caller has its actions. A replay was counted when it was new."""
        if not case.replayed:
            self._counts.answered(case.model, case.robot_type, "success", case.elapsed_s)
        _end(case)

    def headers(self, case: Case) -> dict[str, str]:
        """What a transport with headers says of the limits."""
        return dict(case.allowance.headers) if case.allowance is not None else {}

    def left(self, case: Case) -> None:
        """The caller is gone without an answer."""
        self._counts.answered(case.model, case.robot_type, "disconnected", case.elapsed_s)
        _end(case, "disconnected")

    def refused(self, error: VlastreamError, case: Case) -> Problem:
        """The problem that a caller is told, counted."""
        problem = problem_of(error)
        problem.headers = {**self.headers(case), **problem.headers}
        if not case.replayed:
            self._counts.answered(case.model, case.robot_type, problem.code, case.elapsed_s)
        if not case.published:
            if case.allowance is not None:
                self._limits.give_back(case.allowance)
            self._counts.refused_before_produce(problem.code)
            for violation in problem.violations:
                self._counts.malformed(violation["field"], violation["reason"], _FIELDS)
        if problem is not error:
            trace = log_fields(case.span.traceparent if case.span is not None else "")
            about = {"action": "refuse", "reason": problem.code, "request_id": case.request_id[:64], **trace}
            log.warning("%s", error, extra=about)
        _end(case, problem.code)
        return problem

    def _timings(self, outcome: Outcome, case: Case) -> dict[str, float]:
        # Elapsed time is monotonic, so that a clock that is set meanwhile does not bend the total.
        answered_us = case.received_us + round(case.elapsed_s * 1e6)
        if case.replayed:
            return {"total": (answered_us - case.received_us) / 1000}
        return timings_ms(outcome.times, received_us=case.received_us, answered_us=answered_us)


def _end(case: Case, error: str = "") -> None:
    if case.span is not None:
        case.span.end(error=error, attributes={"vlastream.replayed": case.replayed})


def _is_matrix(outcome: Outcome) -> bool:
    matrix = outcome.chunk.actions
    return len(matrix.values) == matrix.horizon * matrix.dim


def _unreadable(case: Case) -> Problem:
    log.error("an outcome cannot be read", extra={"action": "bad_outcome", "request_id": case.request_id[:64]})
    return Problem(Code.INTERNAL, "the pipeline gave an answer that this API cannot read")
