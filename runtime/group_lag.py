"""How far consumer groups are behind, asked of the broker: a group whose consumers hang or are gone is seen too.

What a consumer says of its own lag (`vla_consumer_lag`) ends with the consumer. Counts alone do not tell whether
robots wait: the age of the oldest record that a group has not finished does.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import Gauge

from runtime.broker_offsets import OffsetsPort, Place
from runtime.errors import VlastreamError
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
#: Rates are those of about so many seconds.
_RATE_WINDOW_S = 30.0


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
            visible = self._offsets.places()
            found = {watched.group: self._lag(watched, visible) for watched in self._groups}
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

    def _lag(self, watched: Watched, visible: Sequence[Place]) -> Lag:
        # Before the ends: whatever is finished in between makes the lag smaller, never larger than it was.
        # Of all that can be seen, as fleets come while this runs: what a group has committed is watched too.
        committed = self._offsets.committed(watched.group, visible)
        topics = {*watched.topics, *(topic for topic, _ in committed)}
        places = [place for place in visible if place[0] in topics]
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


def _set(gauge: Gauge, label: str, value: float | None) -> None:
    """A value that is not known is no sample: 0 would say that nothing waits."""
    if value is None:
        gauge.remove(label)
    else:
        gauge.labels(label).set(value)
