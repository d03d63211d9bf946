"""Where an answer may go, and the record that carries it there."""

from __future__ import annotations

import time

from schemas import headers as h
from schemas.codes import Code, status_of
from schemas.messages import Control, Outcome, Rejection, ReplyAddress, RequestSummary, Stage, Violation
from schemas.topics import REPLIES, REQUESTS, replies_topic, requests_topic
from stream_agents.delivery import Outgoing

_LONGEST_CORRELATION_ID = 128


class Origins:
    """What a request topic says of its producer: only the API's own topic is trusted with headers."""

    def __init__(self, fleets: tuple[str, ...], reply_partitions: int) -> None:
        self._reply_partitions = reply_partitions
        self._fleet_of = {requests_topic(fleet): fleet for fleet in fleets}

    @property
    def topics(self) -> list[str]:
        return [REQUESTS, *self._fleet_of]

    def customer(self, topic: str, headers: dict[str, str]) -> str | None:
        """The customer: the fleet itself on a fleet's topic, the API's header on the API's; None if it is missing."""
        fleet = self._fleet_of.get(topic)
        return fleet if fleet is not None else headers.get(h.CUSTOMER_ID)

    def is_fleet(self, topic: str) -> bool:
        return topic in self._fleet_of

    def address(self, source: h.Source, headers: dict[str, str], request_id: str) -> ReplyAddress | None:
        """Where the answer goes. A fleet's robots read the partition of their fleet's replies that they wrote to."""
        correlation_id = headers.get(h.CORRELATION_ID) or request_id
        correlation_id = correlation_id[:_LONGEST_CORRELATION_ID]
        fleet = self._fleet_of.get(source.topic)
        if fleet is not None:
            return ReplyAddress(topic=replies_topic(fleet), partition=source.partition, correlation_id=correlation_id)
        partition = h.integer(headers, h.REPLY_PARTITION)
        if headers.get(h.REPLY_TOPIC) != REPLIES or partition is None or not 0 <= partition < self._reply_partitions:
            return None
        return ReplyAddress(topic=REPLIES, partition=partition, correlation_id=correlation_id)


def reply(
    address: ReplyAddress,
    outcome: bytes,
    *,
    robot_id: str,
    request_id: str,
    replayed: bool,
    expired: bool,
    traceparent: str = "",
) -> Outgoing:
    """One answer: the outcome's bytes as they stand in the log, and what holds for this answer alone in headers."""
    headers = {
        **h.cloud_event(
            event_type="vla.outcome.v1", event_id=address.correlation_id, source="stream_agents", now_s=time.time()
        ),
        h.CORRELATION_ID: address.correlation_id,
        h.REQUEST_ID: request_id,
        h.REPLAYED: str(replayed).lower(),
        h.EXPIRED: str(expired).lower(),
        **({h.TRACEPARENT: traceparent} if traceparent else {}),
    }
    return Outgoing(
        topic=address.topic,
        value=outcome,
        key=robot_id.encode(),
        headers=h.encode({name: value for name, value in headers.items() if value.isascii()}),
        partition=address.partition,
    )


def withheld(request_id: str, stop: Control) -> bytes:
    """Answers a retry whose first outcome has actions, while its robot is stopped.

    It is no outcome (it names no row): the first one stands, and a retry after the stop gets it.
    """
    violation = Violation(field="robot_id", reason="stopped", detail=f"{stop.target} was stopped")
    refusal = Rejection(
        stage=Stage.STAGE_REQUEST_GATE, code=Code.STOPPED, status=status_of(Code.STOPPED), violations=[violation]
    )
    return Outcome(request=RequestSummary(request_id=request_id), rejection=refusal).SerializeToString()
