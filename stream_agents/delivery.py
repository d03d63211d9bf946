"""Publishing that does not give up: an agent goes on only when the broker has what it wrote."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from runtime.dead_letters import dead_letter_headers
from runtime.errors import Fatal, Retry, Unavailable
from runtime.kafka import Record
from runtime.lifecycle import exit_now
from runtime.metrics import Metrics
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.topics import dead_letter_topic

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """One record to publish."""

    topic: str
    value: bytes
    key: bytes
    headers: h.RawHeaders
    partition: int | None = None


class Delivery:
    """Retries in place until the broker acknowledges; ends the process on what no retry can mend."""

    def __init__(self, publisher: PublisherPort, metrics: Metrics) -> None:
        self._publisher = publisher
        self._metrics = metrics

    async def send(self, out: Outgoing) -> Delivered:
        """Raises Fatal only for a topic or a right that is missing; the caller lets the process end."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                return await self._publisher.send(
                    out.topic, out.value, key=out.key, headers=out.headers, partition=out.partition
                )
            except (Retry, Unavailable) as error:
                self._metrics.retries.labels("gate", type(error).__name__.lower()).inc()
                log.warning("publishing again: %s", error, extra={"action": "retry", "topic": out.topic})
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    async def send_all(self, outgoing: list[Outgoing]) -> list[Delivered]:
        return list(await asyncio.gather(*map(self.send, outgoing)))


def end_process(error: BaseException) -> None:
    """No exception may leave a Faust agent: it would acknowledge the message that it failed on."""
    kind = "Fatal" if isinstance(error, Fatal) else type(error).__name__
    exit_now(f"{kind} in an agent: {error}")


class DeadLetters:
    """Sends what can never be read to its topic's dead letter topic, and waits until it lies there."""

    def __init__(self, delivery: Delivery, metrics: Metrics, group: str) -> None:
        self._delivery = delivery
        self._metrics = metrics
        self._group = group

    async def send(self, record: Record, *, reason: str, stage: str, error: Exception) -> None:
        await self._delivery.send(
            Outgoing(
                topic=dead_letter_topic(record.topic),
                value=record.value or b"",
                key=record.key or b"",
                headers=dead_letter_headers(record, reason=reason, stage=stage, group=self._group, error=error),
            )
        )
        self._metrics.dead_letters.labels(record.topic, reason).inc()
        log.warning(
            "dead letter: %s",
            error,
            extra={
                "action": "dead_letter",
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "reason": reason,
            },
        )
