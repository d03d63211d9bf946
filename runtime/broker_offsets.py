"""What a broker tells of its partitions and groups without a record being read: offsets, ends and times of append."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # re-exported without __all__
    AdminClient,
    ListOffsetsResultInfo,
    OffsetSpec,
)

from runtime.errors import Unavailable

_TIMEOUT_S = 5.0
#: The first question of a search for a record's time; each further one looks eight times as far back.
_FIRST_STEP_MS = 1000
#: Near enough for a time that is shown in seconds.
_NEAR_MS = 10

#: Topic and partition.
Place = tuple[str, int]


class OffsetsPort(Protocol):
    """What is asked of the broker. Every method blocks and raises Unavailable."""

    def places(self) -> list[Place]:
        """Every partition that this user may see, without those of Kafka's own topics."""
        ...

    def committed(self, group: str, places: Sequence[Place]) -> Mapping[Place, int]:
        """Committed offsets; without those partitions for which there is none."""
        ...

    def bounds(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, int]]:
        """First offset that is left, and the end."""
        ...

    def appended_at_ms(self, offsets: Mapping[Place, int]) -> Mapping[Place, int]:
        """Append time of the first record at or after each offset; without those that did not come in time."""
        ...


class KafkaOffsets:
    """OffsetsPort on a real broker, which tells whoever may describe a topic offsets and times: no record is read."""

    def __init__(
        self,
        admin: AdminClient,
        build_consumer: Callable[[str], Consumer],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """build_consumer: of a group, which it never joins, as it subscribes to nothing."""
        self._admin = admin
        self._build_consumer = build_consumer
        self._now = now
        self._clock = clock
        #: One for each group, which a consumer may ask about alone. Not the Admin API: librdkafka up to 2.16 ends the
        #: whole process where a broker goes while that asks a coordinator (confluentinc/librdkafka#4605).
        self._consumers: dict[str, Consumer] = {}

    def close(self) -> None:
        """Nothing may be asked any more."""
        while self._consumers:
            self._consumers.popitem()[1].close()

    def places(self) -> list[Place]:
        try:
            topics = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        except (KafkaException, TimeoutError) as error:
            raise _away(error) from error
        return [
            (name, number) for name, topic in topics.items() if not name.startswith("__") for number in topic.partitions
        ]

    def committed(self, group: str, places: Sequence[Place]) -> Mapping[Place, int]:
        asked = [TopicPartition(*place) for place in places]
        if group not in self._consumers:
            self._consumers[group] = self._build_consumer(group)
        consumer = self._consumers[group]
        try:
            # Without a subscription no record comes: what is served are its statistics.
            consumer.poll(0)
            found = consumer.committed(asked, timeout=_TIMEOUT_S)
            if failed := next((place.error for place in found if place.error is not None), None):
                raise KafkaException(failed)
        except KafkaException as error:
            raise _away(error) from error
        except Unavailable:
            # It has lost its brokers for good: the next question takes a new one.
            self._consumers.pop(group).close()
            raise
        return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}

    def bounds(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, int]]:
        earliest: OffsetSpec = OffsetSpec.earliest()  # type: ignore[no-untyped-call] # the stub
        latest: OffsetSpec = OffsetSpec.latest()  # type: ignore[no-untyped-call] # the stub
        lows, ends = self._list(dict.fromkeys(places, earliest)), self._list(dict.fromkeys(places, latest))
        return {place: (lows[place].offset, ends[place].offset) for place in places}

    def appended_at_ms(self, offsets: Mapping[Place, int]) -> Mapping[Place, int]:
        """To 1 % of its age or 10 ms: found by asking which offset the log has at a time, as often as it takes."""
        now_ms = round(self._now() * 1000)
        searches = {place: TimeSearch(offset, now_ms) for place, offset in offsets.items()}
        end = self._clock() + _TIMEOUT_S
        while open_ones := {place: search for place, search in searches.items() if search.found_ms is None}:
            if self._clock() > end:
                break
            asked = {place: OffsetSpec.for_timestamp(search.ask_ms) for place, search in open_ones.items()}
            for place, answer in self._list(asked).items():
                searches[place].told(answer.offset, answer.timestamp)
        return {place: search.found_ms for place, search in searches.items() if search.found_ms is not None}

    def _list(self, wanted: Mapping[Place, OffsetSpec]) -> dict[Place, ListOffsetsResultInfo]:
        if not wanted:
            return {}
        asked = self._admin.list_offsets(
            {TopicPartition(topic, number): spec for (topic, number), spec in wanted.items()},
            request_timeout=_TIMEOUT_S,
        )
        try:
            return {
                (place.topic, place.partition): answer.result(timeout=_TIMEOUT_S * 2) for place, answer in asked.items()
            }
        except (KafkaException, TimeoutError) as error:
            raise _away(error) from error


class TimeSearch:
    """Narrows down when the record at `offset` was appended, from the first offsets at or after given times.

    Append times of a partition never fall, so each answer says on which side of the asked time the record lies.
    """

    def __init__(self, offset: int, now_ms: int) -> None:
        self._offset = offset
        self._now_ms = now_ms
        #: The record was appended within both, as far as it is known.
        self._from_ms: int | None = None
        self._until_ms = now_ms
        self._step_ms = _FIRST_STEP_MS
        #: Set once it is near enough.
        self.found_ms: int | None = None

    @property
    def ask_ms(self) -> int:
        """The next question: which offset is the first that was appended at this time or later?"""
        if self._from_ms is None:
            return max(self._now_ms - self._step_ms, 0)
        return (self._from_ms + self._until_ms + 1) // 2

    def told(self, offset: int, appended_ms: int) -> None:
        """The answer: that offset and its append time; -1 where nothing was appended since."""
        asked_ms = self.ask_ms
        if offset == self._offset:
            self.found_ms = appended_ms
        elif 0 <= offset < self._offset:
            self._from_ms = appended_ms
        elif asked_ms == 0:
            # Retention has taken it meanwhile: what is left is the oldest now.
            self.found_ms = appended_ms if offset >= 0 else self._now_ms
        else:
            self._until_ms = asked_ms - 1
            self._step_ms *= 8
        near_ms = max(_NEAR_MS, (self._now_ms - self._until_ms) // 100)
        if self.found_ms is None and self._from_ms is not None and self._until_ms - self._from_ms <= near_ms:
            self.found_ms = self._from_ms


def _away(error: KafkaException | TimeoutError) -> Unavailable:
    detail = error.args[0].str() if isinstance(error, KafkaException) else "no answer in time"
    return Unavailable(f"Kafka does not answer: {detail}")
