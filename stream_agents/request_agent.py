"""The request agent: decode, know it again or judge it, record it, forward it or refuse it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

from google.protobuf.message import DecodeError

from runtime.embodiments import RobotTypes
from runtime.errors import Poison
from runtime.kafka import Record
from runtime.metrics import Metrics
from runtime.tracing import Kind, NoTracing, Span, Tracing, log_fields, record_attributes
from schemas import headers as h
from schemas.codes import Code, status_of
from schemas.messages import (
    Completion,
    Control,
    InferenceRequest,
    Outcome,
    Rejection,
    ReplyAddress,
    RequestRecord,
    RequestSummary,
    Stage,
    StageTimes,
    Violation,
)
from schemas.summary import summarize
from schemas.topics import OUTCOMES, RESULTS, accepted_topic
from stream_agents.delivery import DeadLetters, Delivery, Outgoing
from stream_agents.fleet_limits import FleetLimits
from stream_agents.log_reader import LogReader
from stream_agents.replies import Origins, reply, withheld
from stream_agents.request_rules import Accepted, Circumstances, Fault, Refused, judge
from stream_agents.request_table import Redelivery, RequestTable, RetryOf, Reused, record_of

log = logging.getLogger(__name__)


class RequestAgent:
    """Handles one record at a time; returns once everything that it caused is acknowledged."""

    def __init__(
        self,
        *,
        table: RequestTable,
        origins: Origins,
        delivery: Delivery,
        dead_letters: DeadLetters,
        log_reader: LogReader,
        circumstances: Callable[[int], Circumstances],
        default_ttl_ms: int,
        max_ttl_ms: int,
        tier_of: Callable[[str], str],
        limits: FleetLimits,
        metrics: Metrics,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing = tracing or NoTracing()
        self._table = table
        self._origins = origins
        self._delivery = delivery
        self._dead_letters = dead_letters
        self._log_reader = log_reader
        self._circumstances = circumstances
        self._default_ttl_ms = default_ttl_ms
        self._max_ttl_ms = max_ttl_ms
        self._tier_of = tier_of
        self._limits = limits
        self._metrics = metrics

    async def handle(self, record: Record) -> None:
        started_us = time.time_ns() // 1000
        headers = record.headers
        span = self._tracing.start(
            "request gate",
            parent=headers.get(h.TRACEPARENT, ""),
            start_us=started_us,
            kind=Kind.CONSUMER,
            attributes=record_attributes(record),
        )
        try:
            request, customer_id = self._decode(record, headers)
        except Poison as poison:
            await self._bury(record, headers, poison)
            span.end(error=poison.reason)
            return
        ttl_ms = request.ttl_ms if 0 < request.ttl_ms <= self._max_ttl_ms else self._default_ttl_ms
        address = self._origins.address(record.source, headers, request.request_id)
        row_id, row = record_of(
            request,
            customer_id=customer_id,
            source=record.source,
            appended_at_ms=record.timestamp_ms,
            deadline_ms=record.timestamp_ms + ttl_ms,
            address=address,
        )
        case = _Case(record, span, request, row_id, row, started_us)
        standing = self._table.standing(row_id, row)
        if isinstance(standing, RetryOf):
            await self._answer_again(case, standing, address)
        elif isinstance(standing, Redelivery) and standing.record.decided:
            self._metrics.gate_decisions.labels("already_decided").inc()
            if not standing.record.digest:
                # Adopted from its completion: whoever waits for it was not known then.
                await self._answer_again(case, RetryOf(row_id, standing.record), address)
                self._table.complete(row_id, row)
        else:
            if isinstance(standing, Redelivery) and not standing.record.digest:
                # Adopted too, and its outcome was not kept: it comes again.
                self._table.complete(row_id, row)
            verdict = await self._within_limits(case, standing) or self._verdict(case, standing)
            await self._settle(case, verdict, again=isinstance(standing, Redelivery))
        self._table.evict(record.partition, record.timestamp_ms)
        self._metrics.gate_records.set(len(self._table))
        self._metrics.stage_duration.labels("request_gate").observe(time.time_ns() / 1e9 - started_us / 1e6)
        span.end(
            error=row.refusal,
            attributes={"vlastream.request_id": request.request_id[:64], "vlastream.robot_id": request.robot_id[:128]},
        )

    def _decode(self, record: Record, headers: dict[str, str]) -> tuple[InferenceRequest, str]:
        customer_id = self._origins.customer(record.topic, headers)
        if not customer_id:
            raise Poison("missing_headers", f"a record on {record.topic} names no {h.CUSTOMER_ID}")
        try:
            request = InferenceRequest.FromString(record.value or b"")
        except DecodeError as error:
            raise Poison("undecodable", "the value is not an InferenceRequest") from error
        if not request.request_id and not request.robot_id:
            # Random bytes can be valid protobuf: unknown fields and nothing that we know.
            raise Poison("undecodable", "the value names neither a request nor a robot")
        return request, customer_id

    async def _within_limits(self, case: _Case, standing: object) -> Refused | None:
        """A refusal over a limit. A redelivery was counted the first time, and what was said of it then holds."""
        if isinstance(standing, Redelivery):
            if standing.record.refusal != Code.QUOTA:
                return None
            detail = "this customer was over a limit when the request came"
            return Refused((Fault(Code.QUOTA, "request", "redelivered", detail),))
        record, size_bytes = case.record, len(case.record.value or b"")
        return await self._limits.over(
            record.topic, case.row.customer_id, case.row.robot_id, size_bytes, record.timestamp_ms
        )

    def _verdict(self, case: _Case, standing: object) -> Accepted | Refused:
        """What becomes of it. A redelivery is judged as it was the first time."""
        earlier = standing.record.refusal if isinstance(standing, Redelivery) else ""
        if isinstance(standing, Reused) or earlier == Code.REQUEST_ID_REUSED:
            detail = "another request had this id with other content: use a new id for each observation"
            return Refused((Fault(Code.REQUEST_ID_REUSED, "request_id", "reused", detail),))
        pinned = standing.record.deployment if isinstance(standing, Redelivery) else ""
        around = self._circumstances(case.row.deadline_ms)
        verdict = judge(case.request, case.row.customer_id, around, pinned=pinned)
        duplicate = earlier == Code.DUPLICATE or (not earlier and self._table.is_duplicate(case.row_id, case.row))
        if isinstance(verdict, Accepted) and duplicate:
            detail = "this observation was sent before under another request id: send a new frame, or count `step` on"
            return Refused((Fault(Code.DUPLICATE, "request", "duplicate", detail),), verdict.sizes)
        return verdict

    async def _settle(self, case: _Case, verdict: Accepted | Refused, *, again: bool) -> None:
        """Record first, then forward and wait for the acknowledgement."""
        if isinstance(verdict, Refused):
            case.row.refusal = verdict.code
        else:
            case.row.deployment = verdict.deployment.deployment
        if again:
            self._metrics.gate_decisions.labels("redelivered").inc()
        else:
            self._metrics.gate_decoded.inc()
            self._metrics.gate_decisions.labels("accepted" if isinstance(verdict, Accepted) else verdict.code).inc()
            self._table.remember(case.row_id, case.row)
        if isinstance(verdict, Accepted):
            await self._delivery.send(self._accepted(case, verdict))
        else:
            await self._delivery.send(self._refusal(case, verdict))
            log.info(
                "refused: %s",
                verdict.faults[0].detail,
                extra={"action": "refuse", "reason": verdict.code, **case.log_fields},
            )

    async def _answer_again(self, case: _Case, first: RetryOf, address: ReplyAddress | None) -> None:
        """A retry gets the first outcome: now from the log, or when it comes."""
        if address is None:
            return
        if not first.record.decided:
            self._metrics.gate_decisions.labels("retry_waits").inc()
            self._table.wait(first.row_id, address)
            return
        outcome = await self._read_outcome(first.record)
        if outcome is None:
            log.warning("an outcome within the window is gone from the log", extra=case.log_fields)
            return
        if not first.record.refused and (stop := self._stop_over(case)) is not None:
            outcome = withheld(case.request.request_id, stop)
        expired = time.time() * 1000 > first.record.deadline_ms
        self._metrics.gate_decisions.labels("replayed").inc()
        self._metrics.replays.labels(str(expired).lower()).inc()
        await self._delivery.send(
            reply(
                address,
                outcome,
                robot_id=case.request.robot_id,
                request_id=case.request.request_id,
                replayed=True,
                expired=expired,
            )
        )

    def _stop_over(self, case: _Case) -> Control | None:
        around = self._circumstances(case.row.deadline_ms)
        model = case.request.model or around.cards.default_model or ""
        return around.stop_of(case.row.customer_id, case.row.robot_id, model)

    async def _read_outcome(self, first: RequestRecord) -> bytes | None:
        where = range(first.outcome_offset, first.outcome_offset + 1)
        found = await self._log_reader.read(OUTCOMES, first.source.partition, where)
        return found[0].value if found else None

    async def _bury(self, record: Record, headers: dict[str, str], poison: Poison) -> None:
        """Dead letter; if somebody who waits can be made out, a refusal besides. It is no outcome: nothing was read."""
        await self._dead_letters.send(record, reason=poison.reason, stage="request_gate", error=poison)
        self._metrics.gate_decisions.labels("dead_letter").inc()
        request_id = headers.get(h.REQUEST_ID, "")
        address = self._origins.address(record.source, headers, request_id)
        if address is None or not request_id:
            return
        refusal = Rejection(
            stage=Stage.STAGE_REQUEST_GATE,
            code=Code.UNDECODABLE,
            status=status_of(Code.UNDECODABLE),
            violations=[Violation(field="value", reason=poison.reason, detail=str(poison))],
        )
        outcome = Outcome(request=RequestSummary(request_id=request_id), rejection=refusal).SerializeToString()
        robot_id = (record.key or b"").decode("utf-8", "replace")
        answer = reply(address, outcome, robot_id=robot_id, request_id=request_id, replayed=False, expired=False)
        await self._delivery.send(answer)

    def _accepted(self, case: _Case, verdict: Accepted) -> Outgoing:
        return Outgoing(
            topic=accepted_topic(verdict.deployment.deployment),
            value=case.record.value or b"",
            key=case.request.robot_id.encode(),
            headers=h.encode(
                {
                    **h.cloud_event(
                        event_type="vla.accepted.v1", event_id=case.row_id, source="stream_agents", now_s=time.time()
                    ),
                    h.REQUEST_ID: case.request.request_id,
                    h.ROW_ID: case.row_id,
                    h.CUSTOMER_ID: case.row.customer_id,
                    h.CONSENT_TIER: self._tier_of(case.row.customer_id),
                    h.DEADLINE_MS: case.row.deadline_ms,
                    h.REQUESTED_AT_MS: case.row.appended_at_ms,
                    h.SOURCE: str(case.record.source),
                    h.GATE_START_US: case.started_us,
                    h.GATE_END_US: time.time_ns() // 1000,
                    **case.trace,
                }
            ),
        )

    def _refusal(self, case: _Case, verdict: Refused) -> Outgoing:
        # The API counts the refusals that it passes on; those of direct producers are counted here.
        for fault in verdict.faults if self._origins.is_fleet(case.record.topic) else ():
            self._metrics.validation_failures.labels(fault.field.partition(".")[0], fault.reason).inc()
        completion = Completion(
            row_id=case.row_id,
            request=summarize(
                case.request,
                customer_id=case.row.customer_id,
                consent_tier=self._tier_of(case.row.customer_id),
                requested_at_ms=case.row.appended_at_ms,
                deadline_ms=case.row.deadline_ms,
                source=case.record.source,
                sizes=verdict.sizes or None,
            ),
            rejection=Rejection(
                stage=Stage.STAGE_REQUEST_GATE,
                code=verdict.code,
                status=status_of(verdict.code),
                violations=[Violation(field=f.field, reason=f.reason, detail=f.detail) for f in verdict.faults],
                retry_after_s=verdict.retry_after_s,
            ),
            times=StageTimes(gate_start_us=case.started_us, gate_end_us=time.time_ns() // 1000),
        )
        return Outgoing(
            topic=RESULTS,
            value=completion.SerializeToString(),
            key=case.request.robot_id.encode(),
            headers=h.encode(
                {
                    **h.cloud_event(
                        event_type="vla.rejection.v1", event_id=case.row_id, source="stream_agents", now_s=time.time()
                    ),
                    h.ROW_ID: case.row_id,
                    h.SOURCE: str(case.record.source),
                    **case.trace,
                }
            ),
            # Both agents of a robot share one table partition: that of its request record.
            partition=case.record.partition,
        )


class _Case:
    """One decoded request on its way through the agent."""

    def __init__(
        self,
        record: Record,
        span: Span,
        request: InferenceRequest,
        row_id: str,
        row: RequestRecord,
        started_us: int,
    ) -> None:
        self.record = record
        self.request = request
        self.row_id = row_id
        self.row = row
        self.started_us = started_us
        self.trace = {h.TRACEPARENT: span.traceparent} if span.traceparent else {}
        self.log_fields = {
            "request_id": request.request_id,
            "robot_id": request.robot_id,
            **log_fields(span.traceparent),
        }


def circumstances_of(
    *,
    robots: RobotTypes,
    has_live_worker: Callable[[str], bool],
    stop_of: Callable[[str, str, str], Control | None],
    max_ttl_ms: int,
    weights_of: Callable[[str], Mapping[str, float] | None] = lambda model: None,
) -> Callable[[int], Circumstances]:
    """What decides besides the request, as of the moment of the question."""

    def now(deadline_ms: int) -> Circumstances:
        return Circumstances(
            cards=robots.cards,
            own_robot=robots.own,
            has_live_worker=has_live_worker,
            stop_of=stop_of,
            now_ms=time.time_ns() // 1_000_000,
            deadline_ms=deadline_ms,
            max_ttl_ms=max_ttl_ms,
            weights_of=weights_of,
        )

    return now
