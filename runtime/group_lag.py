"""How far consumer groups are behind, asked of the broker: a group whose consumers hang or are gone is seen too.

What a consumer says of its own lag (`vla_consumer_lag`) ends with the consumer. Counts alone do not tell whether
robots wait: the age of the oldest record that a group has not finished does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # re-exported without __all__
    AdminClient,
    OffsetSpec,
)

from runtime.errors import Unavailable, VlastreamError
from runtime.kafka import check_consumed, record_of
from runtime.metrics import Metrics
from schemas.cards import CardSet
from schemas.topics import (
    CONSENT,
    EMBEDDER_GROUP,
    EMBEDDINGS,
    EPISODES,
    FEEDBACK,
    GATE_APP,
    OUTCOMES,
    PARQUET_GROUP,
    POSTGRES_GROUP,
    QUERIES,
    REQUESTS,
    RESULTS,
    accepted_topic,
    episodes_topic,
    requests_topic,
    worker_group,
)

log = logging.getLogger(__name__)

#: Seconds between two looks.
INTERVAL_S = 5.0
_TIMEOUT_S = 5.0
#: Rates are those of about so many seconds.
_RATE_WINDOW_S = 30.0

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Watched:
    """A consumer group and what it reads; `deployment` where its consumers are the workers of one."""

    group: str
    topics: tuple[str, ...]
    deployment: str = ""


@dataclass(frozen=True, slots=True)
class Lag:
    """records: not finished yet, in flight among them. oldest_age_s: since the append of the oldest of them, 0.0
    where there is none. rate_per_s: records finished a second of late; None until it was looked at twice."""

    records: int
    oldest_age_s: float
    rate_per_s: float | None


class OffsetsPort(Protocol):
    """What is asked of the broker. Every method blocks and raises Unavailable."""

    def places(self, topics: Iterable[str]) -> list[Place]:
        """Partitions of those topics that exist."""
        ...

    def committed(self, group: str) -> Mapping[Place, int]:
        """Committed offsets; without those partitions for which there is none."""
        ...

    def bounds(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, int]]:
        """First offset that is left, and the end."""
        ...

    def appended_at_ms(self, offsets: Mapping[Place, int]) -> Mapping[Place, int]:
        """Append time of the first record at or after each offset; without those that did not come in time."""
        ...


def watched_groups(cards: CardSet, fleets: Sequence[str]) -> list[Watched]:
    """Every group of an installation, in the order of the flow."""
    requests = (REQUESTS, *map(requests_topic, fleets), RESULTS)
    accepted = {card.deployment: accepted_topic(card.deployment) for card in cards.models}
    episodes = (EPISODES, *map(episodes_topic, fleets))
    return [
        Watched(GATE_APP, requests),
        *(Watched(worker_group(deployment), (topic,), deployment) for deployment, topic in accepted.items()),
        Watched(POSTGRES_GROUP, (OUTCOMES, EMBEDDINGS, FEEDBACK, *episodes, CONSENT)),
        Watched(PARQUET_GROUP, (*accepted.values(), OUTCOMES, FEEDBACK, *episodes)),
        Watched(EMBEDDER_GROUP, (*accepted.values(), QUERIES)),
    ]


def behind(committed: int | None, low: int, end: int) -> int:
    """Records that a group has not finished in one partition. What retention has taken is no work any more."""
    return max(end - max(committed or 0, low), 0)


class GroupLag:
    """Looks at all groups when told to (`look`), keeps what it saw, and sets the gauges. Thread-safe."""

    def __init__(
        self,
        *,
        offsets: OffsetsPort,
        groups: Sequence[Watched],
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._offsets = offsets
        self._groups = list(groups)
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._lags: dict[str, Lag] = {}
        self._finished: dict[str, deque[tuple[float, int]]] = {watched.group: deque() for watched in groups}
        self._looked_at = float("-inf")
        self._failing = False

    @property
    def age_s(self) -> float:
        """Seconds since the last look that succeeded."""
        return self._clock() - self._looked_at

    def of(self, group: str) -> Lag | None:
        """What was seen last; None before the first look."""
        with self._lock:
            return self._lags.get(group)

    def all(self) -> dict[str, Lag]:
        with self._lock:
            return dict(self._lags)

    def look(self) -> None:
        """Ask the broker about every group. While it is away what was seen last stays, and its age grows."""
        try:
            found = {watched.group: self._lag(watched) for watched in self._groups}
        except VlastreamError as error:
            # Told once, not every five seconds of an outage.
            if not self._failing:
                log.warning("consumer groups cannot be looked at: %s", error, extra={"action": "group_lag"})
            self._failing = True
            return
        self._failing = False
        with self._lock:
            self._lags = found
            self._looked_at = self._clock()
        for watched in self._groups:
            lag = found[watched.group]
            self._metrics.group_lag.labels(watched.group).set(lag.records)
            self._metrics.group_oldest_age.labels(watched.group).set(lag.oldest_age_s)
            if watched.deployment:
                self._metrics.deployment_lag.labels(watched.deployment).set(lag.records)
                self._metrics.deployment_oldest_age.labels(watched.deployment).set(lag.oldest_age_s)

    def _lag(self, watched: Watched) -> Lag:
        # Before the ends: whatever is finished in between makes the lag smaller, never larger than it was.
        committed = self._offsets.committed(watched.group)
        # Fleets come while this runs: what a group has committed is watched too.
        topics = dict.fromkeys((*watched.topics, *(topic for topic, _ in committed)))
        places = self._offsets.places(topics)
        bounds = self._offsets.bounds(places)
        waiting = {
            place: max(committed.get(place, 0), low)
            for place, (low, end) in bounds.items()
            if behind(committed.get(place), low, end)
        }
        records = sum(behind(committed.get(place), low, end) for place, (low, end) in bounds.items())
        oldest_ms = min(self._offsets.appended_at_ms(waiting).values(), default=None) if waiting else None
        age_s = 0.0 if oldest_ms is None else max(self._now() - oldest_ms / 1000, 0.0)
        finished = sum(committed.get(place, 0) for place in places)
        return Lag(records=records, oldest_age_s=age_s, rate_per_s=self._rate(watched.group, finished))

    def _rate(self, group: str, finished: int) -> float | None:
        seen, now = self._finished[group], self._clock()
        seen.append((now, finished))
        while now - seen[0][0] > _RATE_WINDOW_S and len(seen) > 2:
            seen.popleft()
        first_s, first = seen[0]
        return None if now <= first_s else max(finished - first, 0) / (now - first_s)


class KafkaOffsets:
    """OffsetsPort on a real broker. Of one thread; owns its consumer.

    build: a groupless consumer that fetches little at once, as one record of a partition is all that is wanted.
    """

    #: For the consumer: Kafka returns one batch at least, however small the limit (KIP-74).
    SINGLE_READS: dict[str, Any] = {"fetch.wait.max.ms": 10, "fetch.message.max.bytes": 1024}

    def __init__(self, admin: AdminClient, build: Callable[[], Consumer]) -> None:
        self._admin = admin
        self._build = build
        self._consumer: Consumer | None = None

    def places(self, topics: Iterable[str]) -> list[Place]:
        try:
            known = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        except (KafkaException, TimeoutError) as error:
            raise _away(error) from error
        return [(topic, number) for topic in topics if topic in known for number in known[topic].partitions]

    def committed(self, group: str) -> Mapping[Place, int]:
        asked = self._admin.list_consumer_group_offsets(
            [ConsumerGroupTopicPartitions(group)], request_timeout=_TIMEOUT_S
        )
        try:
            found = asked[group].result(timeout=_TIMEOUT_S * 2).topic_partitions or []
        except (KafkaException, TimeoutError) as error:
            raise _away(error) from error
        return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}

    def bounds(self, places: Sequence[Place]) -> Mapping[Place, tuple[int, int]]:
        lows = self._list(places, OffsetSpec.earliest())  # type: ignore[no-untyped-call] # the library's stub
        ends = self._list(places, OffsetSpec.latest())  # type: ignore[no-untyped-call] # the library's stub
        return {place: (lows[place], ends[place]) for place in places}

    def appended_at_ms(self, offsets: Mapping[Place, int]) -> Mapping[Place, int]:
        if self._consumer is None:
            self._consumer = self._build()
        found: dict[Place, int] = {}
        try:
            self._consumer.assign([TopicPartition(topic, number, at) for (topic, number), at in offsets.items()])
            end = time.monotonic() + _TIMEOUT_S
            while len(found) < len(offsets) and time.monotonic() < end:
                message = self._consumer.poll(0.1)
                if message is None or not check_consumed(message):
                    continue
                record = record_of(message)
                place = (record.topic, record.partition)
                if place not in found:
                    found[place] = record.timestamp_ms
                    self._consumer.pause([TopicPartition(*place)])
        except (KafkaException, TimeoutError) as error:
            raise _away(error) from error
        finally:
            self._consumer.unassign()
        return found

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()

    def _list(self, places: Sequence[Place], spec: OffsetSpec) -> dict[Place, int]:
        if not places:
            return {}
        asked = self._admin.list_offsets(
            {TopicPartition(topic, number): spec for topic, number in places}, request_timeout=_TIMEOUT_S
        )
        try:
            return {
                (place.topic, place.partition): answer.result(timeout=_TIMEOUT_S * 2).offset
                for place, answer in asked.items()
            }
        except (KafkaException, TimeoutError) as error:
            raise _away(error) from error


def _away(error: KafkaException | TimeoutError) -> Unavailable:
    detail = error.args[0].str() if isinstance(error, KafkaException) else "no answer in time"
    return Unavailable(f"Kafka does not answer: {detail}")
