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
from typing import Protocol

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined] # re-exported without __all__
    AdminClient,
    ListOffsetsResultInfo,
    OffsetSpec,
    TopicMetadata,
)
from prometheus_client import Gauge

from runtime.errors import Unavailable, VlastreamError
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
#: The first question of a search for a record's time; each further one looks eight times as far back.
_FIRST_STEP_MS = 1000
#: Near enough for a time that is shown in seconds.
_NEAR_MS = 10

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
    where there is none; None where the broker did not tell in time. rate_per_s: records finished a second of late;
    None until it was looked at twice."""

    records: int
    oldest_age_s: float | None
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
            _set(self._metrics.group_oldest_age, watched.group, lag.oldest_age_s)
            if watched.deployment:
                self._metrics.deployment_lag.labels(watched.deployment).set(lag.records)
                _set(self._metrics.deployment_oldest_age, watched.deployment, lag.oldest_age_s)

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
        finished = sum(committed.get(place, 0) for place in places)
        return Lag(
            records=records, oldest_age_s=self._oldest_age_s(waiting), rate_per_s=self._rate(watched.group, finished)
        )

    def _oldest_age_s(self, waiting: Mapping[Place, int]) -> float | None:
        """waiting: the first offset of each partition that is not finished."""
        if not waiting:
            return 0.0
        appended_ms = self._offsets.appended_at_ms(waiting)
        # The one that did not come may be the oldest: old ones take the longest to find.
        if len(appended_ms) < len(waiting):
            return None
        return max(self._now() - min(appended_ms.values()) / 1000, 0.0)

    def _rate(self, group: str, finished: int) -> float | None:
        seen, now = self._finished[group], self._clock()
        seen.append((now, finished))
        while now - seen[0][0] > _RATE_WINDOW_S and len(seen) > 2:
            seen.popleft()
        first_s, first = seen[0]
        return None if now <= first_s else max(finished - first, 0) / (now - first_s)


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

    def places(self, topics: Iterable[str]) -> list[Place]:
        known = self._known()
        return [(topic, number) for topic in topics if topic in known for number in known[topic].partitions]

    def committed(self, group: str) -> Mapping[Place, int]:
        # Of all that this user may see, so that fleets of which nobody told are among them.
        visible = {name: topic for name, topic in self._known().items() if not name.startswith("__")}
        asked = [TopicPartition(name, number) for name, topic in visible.items() for number in topic.partitions]
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

    def _known(self) -> Mapping[str, TopicMetadata]:
        try:
            return self._admin.list_topics(timeout=_TIMEOUT_S).topics
        except (KafkaException, TimeoutError) as error:
            raise _away(error) from error

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


def _set(gauge: Gauge, label: str, value: float | None) -> None:
    """A value that is not known is no sample: 0 would say that nothing waits."""
    if value is None:
        gauge.remove(label)
    else:
        gauge.labels(label).set(value)


def _away(error: KafkaException | TimeoutError) -> Unavailable:
    detail = error.args[0].str() if isinstance(error, KafkaException) else "no answer in time"
    return Unavailable(f"Kafka does not answer: {detail}")
