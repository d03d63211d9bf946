"""What the rows in Postgres do not hold: single records of the log, read back on demand at their offsets.

Whoever asks has made sure that the row which names the place is the viewer's. A read takes a second or two at most;
what retention took, or the log never had, is None.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition
from google.protobuf.message import DecodeError, Message

from runtime.errors import Fatal, Unavailable
from runtime.kafka import Record, build_consumer
from runtime.lifecycle import Deadline
from runtime.read_back import SINGLE_READS, KeptConsumer, read_back
from runtime.settings import Settings
from schemas import headers as h
from schemas.messages import InferenceRequest, Outcome
from schemas.topics import OUTCOMES, REQUESTS

_TIMEOUT_S = 3.0
#: Records that are kept for the requests that follow: a page asks for each camera by itself.
_MOST_KEPT = 8
#: Reads that wait for their turn; beyond it a page does without.
_MOST_WAITING = 16
MISSING_USER = (
    "this Kafka knows its users, and the console has none: set CONSOLE_KAFKA_SASL_USERNAME and "
    "CONSOLE_KAFKA_SASL_PASSWORD (the user `console` of docs/security.md)"
)


MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a row says that a record is, and what must be true of it: a topic made anew begins at 0 again."""

    source: h.Source
    customer_id: str
    robot_id: str
    request_id: str


def console_settings(settings: Settings) -> Settings | None:
    """Settings of the user that the console is in Kafka: everybody where Kafka has no users; None where it has none."""
    if not settings.kafka_security_protocol.startswith("SASL_"):
        return settings
    if not settings.console_kafka_sasl_username:
        return None
    return settings.model_copy(
        update={
            "kafka_sasl_username": settings.console_kafka_sasl_username,
            "kafka_sasl_password": settings.console_kafka_sasl_password,
        }
    )


class LogPort(Protocol):
    """Raises Unavailable while Kafka is away or may not be read; the message says why."""

    async def request(self, place: Place) -> InferenceRequest | None: ...

    async def outcome(self, place: Place) -> Outcome | None: ...


class Log:
    """LogPort on a real broker. Of one event loop; owns one groupless consumer."""

    def __init__(self, build: Callable[[], Consumer] | None, timeout_s: float = _TIMEOUT_S) -> None:
        """build: None where nobody may read; timeout_s: of one read."""
        self._reader = KeptConsumer(build) if build is not None else None
        self._timeout_s = timeout_s
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._kept: OrderedDict[h.Source, Record] = OrderedDict()

    @classmethod
    def of(cls, settings: Settings, client_id: str) -> Log:
        """As the user of the console where Kafka has users, else as everybody."""
        readable = console_settings(settings)
        if readable is None:
            return cls(None)
        return cls(lambda: build_consumer(readable, client_id, group=None, **SINGLE_READS))

    async def request(self, place: Place) -> InferenceRequest | None:
        record = await self._record(place.source)
        return None if record is None else request_of(record, place)

    async def outcome(self, place: Place) -> Outcome | None:
        record = await self._record(place.source)
        return None if record is None else outcome_of(record, place)

    def close(self, deadline: Deadline) -> None:
        if self._reader is not None:
            self._reader.close()

    async def _record(self, source: h.Source) -> Record | None:
        reader = self._reader
        if reader is None:
            raise Unavailable(MISSING_USER)
        if source in self._kept:
            self._kept.move_to_end(source)
            return self._kept[source]
        if self._waiting >= _MOST_WAITING:
            raise Unavailable("too many read the log at once: try again")
        self._waiting += 1
        try:
            async with self._lock:
                record = self._kept.get(source) or await asyncio.to_thread(self._read, reader, source)
        finally:
            self._waiting -= 1
        if record is not None:
            self._kept[source] = record
            while len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return record

    def _read(self, reader: KeptConsumer, source: h.Source) -> Record | None:
        """Blocks for `timeout_s` at most."""
        deadline = Deadline(self._timeout_s)
        place = TopicPartition(source.topic, source.partition)
        try:
            with reader.reading() as consumer:
                low, high = consumer.get_watermark_offsets(place, timeout=self._timeout_s)
                if not low <= source.offset < high:
                    return None
                offsets = range(source.offset, source.offset + 1)
                found = read_back(consumer, source.topic, source.partition, offsets, deadline.remaining_s)
        except KafkaException as error:
            raise Unavailable(f"the log cannot be read: {error.args[0].str()}") from error
        except TimeoutError as error:
            raise Unavailable("the log did not answer in time: try again") from error
        except Fatal as error:
            # Not for good: permissions may be given meanwhile.
            raise Unavailable(str(error)) from error
        return found[0] if found else None


def request_of(record: Record, place: Place) -> InferenceRequest | None:
    """The request that a record holds, if it is the one that the row tells of."""
    message = _parsed(InferenceRequest, record.value)
    if message is None or (message.request_id, message.robot_id) != (place.request_id, place.robot_id):
        return None
    # A fleet's topic is its customer's alone; a header there says nothing.
    foreign = record.topic == REQUESTS and record.headers.get(h.CUSTOMER_ID) != place.customer_id
    return None if foreign else message


def outcome_of(record: Record, place: Place) -> Outcome | None:
    """The same for an outcome."""
    message = _parsed(Outcome, record.value)
    if message is None or record.topic != OUTCOMES:
        return None
    said = message.request
    meant = (place.customer_id, place.robot_id, place.request_id)
    return message if (said.customer_id, said.robot_id, said.request_id) == meant else None


def _parsed(kind: type[MessageT], value: bytes | None) -> MessageT | None:
    try:
        return kind.FromString(value) if value else None
    except DecodeError:
        return None
