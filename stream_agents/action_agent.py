"""The action agent: turns the first completion of a request into its outcome, the replies and the record."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from runtime.embodiments import RobotTypes
from runtime.errors import Poison
from runtime.kafka import Record
from runtime.metrics import Metrics
from runtime.tracing import Kind, NoTracing, Tracing, record_attributes
from schemas import headers as h
from schemas.action_rules import evaluate_chunk
from schemas.cards import EmbodimentCard
from schemas.codes import Code, status_of
from schemas.messages import (
    ActionChunk,
    ActionMatrix,
    Completion,
    Control,
    Outcome,
    Rejection,
    ReplyAddress,
    RequestRecord,
    RequestSummary,
    Stage,
    Violation,
)
from schemas.topics import OUTCOMES, REPLIES
from stream_agents.delivery import DeadLetters, Delivery, Outgoing
from stream_agents.replies import reply
from stream_agents.request_table import RequestTable, last_chunk

log = logging.getLogger(__name__)


class ActionAgent:
    """The one writer of outcomes. Handles one record at a time; returns once all it wrote is acknowledged."""

    def __init__(
        self,
        *,
        table: RequestTable,
        robots: RobotTypes,
        delivery: Delivery,
        dead_letters: DeadLetters,
        stop_of: Callable[[str, str, str], Control | None],
        min_safety_score: float,
        metrics: Metrics,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing or NoTracing()
        self._table = table
        self._robots = robots
        self._cards = robots.cards
        self._delivery = delivery
        self._dead_letters = dead_letters
        self._stop_of = stop_of
        self._min_safety_score = min_safety_score
        self._metrics = metrics

    async def handle(self, record: Record) -> None:
        started_us = time.time_ns() // 1000
        try:
            completion = self._decode(record)
        except Poison as poison:
            await self._dead_letters.send(record, reason=poison.reason, stage="action_gate", error=poison)
            return
        row = self._table.get(completion.row_id)
        if row is None and completion.request.source.partition == record.partition:
            refusal = completion.rejection.code
            row = self._table.adopt(completion.row_id, completion.request, record.timestamp_ms, refusal)
        if row is None or row.decided:
            # Unknown: nobody's, or long decided and evicted. Decided: the first one won.
            self._metrics.completions_dropped.labels("unknown" if row is None else "decided").inc()
            return
        span = self._tracing.start(
            "action gate",
            parent=record.headers.get(h.TRACEPARENT, ""),
            start_us=started_us,
            kind=Kind.CONSUMER,
            attributes=record_attributes(record),
        )
        outcome = self._outcome(completion, record, row, started_us)
        await self._publish(outcome, row, span.traceparent)
        span.end(
            error=outcome.rejection.code,
            attributes={"vlastream.request_id": row.request_id[:64], "vlastream.robot_id": row.robot_id[:128]},
        )

    def _decode(self, record: Record) -> Completion:
        try:
            completion = Completion.FromString(record.value or b"")
        except DecodeError as error:
            raise Poison("undecodable", "the value is not a Completion") from error
        if not completion.row_id or completion.WhichOneof("kind") is None:
            raise Poison("undecodable", "the completion names no request, or neither a result nor a rejection")
        return completion

    def _outcome(self, completion: Completion, record: Record, row: RequestRecord, started_us: int) -> Outcome:
        """Decide. The same completion over the same table gives the same outcome again."""
        outcome = Outcome(
            row_id=completion.row_id,
            request=completion.request,
            times=completion.times,
            results_offset=record.offset,
            decided_at_ms=record.timestamp_ms,
        )
        summary = outcome.request
        summary.model = summary.model or self._cards.default_model or ""
        if completion.WhichOneof("kind") == "rejection":
            outcome.rejection.CopyFrom(completion.rejection)
        else:
            embodiment = self._commanded(summary, completion.result.deployment)
            stop = self._stop_of(summary.customer_id, summary.robot_id, summary.model)
            if stop is not None:
                outcome.rejection.CopyFrom(
                    _rejection(Code.STOPPED, "robot_id", "stopped", f"{stop.target} was stopped")
                )
            elif embodiment is None:
                detail = f"{summary.robot_type} has no card any more"
                outcome.rejection.CopyFrom(_rejection(Code.INVALID_ROBOT_TYPE, "robot_type", "no_card", detail))
            else:
                self._gate(outcome, completion, embodiment, row)
        outcome.times.action_gate_start_us = started_us
        outcome.times.action_gate_end_us = time.time_ns() // 1000
        return outcome

    def _commanded(self, summary: RequestSummary, deployment: str) -> EmbodimentCard | None:
        """The robot in the action space that the deployment commands; None where its card is gone."""
        robot = self._robots.find(summary.customer_id, summary.robot_type)
        card = self._cards.deployment(deployment)
        if robot is None or card is None:
            return robot
        try:
            return card.commanded(robot)
        except KeyError:
            return None

    def _gate(self, outcome: Outcome, completion: Completion, embodiment: EmbodimentCard, row: RequestRecord) -> None:
        summary, result = completion.request, completion.result
        source = h.Source(row.source.topic, row.source.partition, row.source.offset)
        if self._table.is_overtaken(row.customer_id, row.robot_id, source, result.deployment):
            detail = "a newer observation of this robot was answered by another revision of the model meanwhile"
            outcome.rejection.CopyFrom(_rejection(Code.SUPERSEDED, "request", "overtaken", detail))
            return
        chunk = _matrix(result.chunk)
        verdict = evaluate_chunk(
            chunk,
            embodiment,
            state=np.asarray(summary.state, np.float32),
            previous=self._previous(summary.episode_id, row),
            mode=summary.options.safety_mode,
            min_score=self._min_safety_score,
        )
        self._metrics.safety_score.labels(outcome.request.model).observe(verdict.score)
        if not verdict.passed:
            rejection = Rejection(
                stage=Stage.STAGE_ACTION_GATE,
                code=Code.UNSAFE_ACTION,
                status=status_of(Code.UNSAFE_ACTION),
                safety=verdict.report(),
            )
            rejection.violations.extend(rejection.safety.violations)
            outcome.rejection.CopyFrom(rejection)
            return
        outcome.chunk.CopyFrom(
            ActionChunk(
                actions=_packed(verdict.actions),
                names=[dim.name for dim in embodiment.actions],
                units=[dim.unit for dim in embodiment.actions],
                control_rate_hz=embodiment.control_rate_hz or 0.0,
                safety=verdict.report(),
                result=result,
            )
        )
        if not verdict.modified:
            outcome.chunk.result.ClearField("chunk")

    def _previous(self, episode_id: str, row: RequestRecord) -> NDArray[np.float32] | None:
        """The robot's chunk before this one; none at the start of an episode."""
        source = h.Source(row.source.topic, row.source.partition, row.source.offset)
        chunk = self._table.chunk_before(row.customer_id, row.robot_id, source)
        return _matrix(chunk.actions) if chunk is not None and chunk.episode_id == episode_id else None

    async def _publish(self, outcome: Outcome, row: RequestRecord, trace: str) -> None:
        """Outcome and replies together; the table last, so that a crash before it repeats them harmlessly."""
        value = outcome.SerializeToString()
        answered: list[ReplyAddress] = []
        waiting = list(row.waiting)
        record, *_ = await self._delivery.send_all(
            [
                self._record(outcome, value, row, trace),
                *(self._reply(a, value, row, i, trace) for i, a in enumerate(waiting)),
            ]
        )
        answered.extend(waiting)
        # Retries may have begun to wait in the meantime; none is left out before the row is closed.
        while late := [address for address in row.waiting if address not in answered]:
            await self._delivery.send_all([self._reply(a, value, row, len(answered), trace) for a in late])
            answered.extend(late)
        self._table.decide(outcome.row_id, record.offset, refused=outcome.WhichOneof("kind") == "rejection")
        if outcome.HasField("chunk"):
            source = h.Source(row.source.topic, row.source.partition, row.source.offset)
            self._table.remember_chunk(
                row.customer_id,
                row.robot_id,
                last_chunk(
                    outcome.chunk.actions,
                    source=source,
                    episode_id=row.episode_id,
                    deployment=outcome.chunk.result.deployment,
                    at_ms=outcome.decided_at_ms,
                ),
            )
        self._count(outcome, row, answered)

    def _record(self, outcome: Outcome, value: bytes, row: RequestRecord, trace: str) -> Outgoing:
        headers = h.cloud_event(
            event_type="vla.outcome.v1", event_id=outcome.row_id, source="stream_agents", now_s=time.time()
        )
        return Outgoing(
            topic=OUTCOMES,
            value=value,
            key=row.robot_id.encode(),
            headers=h.encode({**headers, h.ROW_ID: outcome.row_id, **({h.TRACEPARENT: trace} if trace else {})}),
            partition=row.source.partition,
        )

    def _reply(self, address: ReplyAddress, value: bytes, row: RequestRecord, index: int, trace: str) -> Outgoing:
        return reply(
            address,
            value,
            robot_id=row.robot_id,
            request_id=row.request_id,
            replayed=index > 0,
            expired=time.time() * 1000 > row.deadline_ms,
            traceparent=trace,
        )

    def _count(self, outcome: Outcome, row: RequestRecord, answered: list[ReplyAddress]) -> None:
        code = outcome.rejection.code if outcome.HasField("rejection") else "ok"
        self._metrics.outcomes.labels(code).inc()
        times = outcome.times
        self._metrics.stage_duration.labels("action_gate").observe(
            (times.action_gate_end_us - times.action_gate_start_us) / 1e6
        )
        # The API counts what it answers; robots that produce to Kafka themselves are counted here.
        if any(address.topic == REPLIES for address in answered):
            return
        summary = outcome.request
        known_type = summary.robot_type if self._cards.embodiment(summary.robot_type) is not None else "other"
        known_model = summary.model if self._cards.deployments(summary.model) else "other"
        self._metrics.inference_requests.labels(known_model, known_type, "success" if code == "ok" else code).inc()
        latency_s = max(time.time() - summary.requested_at_ms / 1000, 0.0)
        self._metrics.inference_duration.labels(known_model).observe(latency_s)
        safety = outcome.chunk.safety if code == "ok" else outcome.rejection.safety
        if safety.checks:
            self._metrics.safety_checks.labels(known_model, str(code == "ok").lower()).inc()
            if code == Code.UNSAFE_ACTION:
                worst = min(safety.checks, key=lambda name: safety.checks[name])
                self._metrics.safety_rejections.labels(known_model, worst).inc()


def _matrix(matrix: ActionMatrix) -> NDArray[np.float32]:
    """(horizon, dim); a matrix whose count of values does not fit becomes (0, 0), which no card accepts."""
    values = np.asarray(matrix.values, np.float32)
    if values.size != matrix.horizon * matrix.dim or not values.size:
        return np.zeros((0, 0), np.float32)
    return values.reshape(matrix.horizon, matrix.dim)


def _packed(actions: NDArray[np.float32]) -> ActionMatrix:
    horizon, dim = actions.shape
    return ActionMatrix(horizon=horizon, dim=dim, values=actions.ravel().tolist())


def _rejection(code: Code, field: str, reason: str, detail: str) -> Rejection:
    return Rejection(
        stage=Stage.STAGE_ACTION_GATE,
        code=code,
        status=status_of(code),
        violations=[Violation(field=field, reason=reason, detail=detail)],
    )
