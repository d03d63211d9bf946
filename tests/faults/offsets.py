"""No group's committed offset passes a record whose output the broker has not acknowledged."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate

from confluent_kafka import Consumer, KafkaException, TopicPartition

from runtime.kafka import build_consumer
from runtime.settings import Settings

_PERIOD_S = 0.5


@dataclass(frozen=True, slots=True)
class Commit:
    """What a group had committed at a time, Unix epoch in seconds."""

    at_s: float
    topic: str
    partition: int
    offset: int


@dataclass
class Flow:
    """For each input record the time at which its first output lay in the log, Unix epoch in seconds."""

    outputs: dict[tuple[str, int], dict[int, float]] = field(default_factory=lambda: defaultdict(dict))

    def note(self, topic: str, partition: int, offset: int, at_s: float) -> None:
        times = self.outputs[topic, partition]
        times[offset] = min(at_s, times.get(offset, at_s))


def premature(commits: list[Commit], flow: Flow) -> list[str]:
    """The commits that passed a record before its output was in the log."""
    found = []
    latest: dict[tuple[str, int], tuple[list[int], list[float]]] = {}
    for place, times in flow.outputs.items():
        offsets = sorted(times)
        latest[place] = offsets, list(accumulate((times[offset] for offset in offsets), max))
    for commit in commits:
        offsets, maxima = latest.get((commit.topic, commit.partition), ([], []))
        passed = sum(offset < commit.offset for offset in offsets)
        if passed and maxima[passed - 1] > commit.at_s:
            early_s = maxima[passed - 1] - commit.at_s
            where = f"{commit.topic}/{commit.partition}"
            found.append(f"{where} was committed to {commit.offset}, {early_s:.3f} s before an output was in the log")
    return found


class CommitWatch:
    """Asks a group's coordinator again and again what it has committed."""

    def __init__(self, settings: Settings, group: str, topics: dict[str, int]) -> None:
        """topics: how many partitions each has."""
        self.commits: list[Commit] = []
        self._places = [
            TopicPartition(topic, partition) for topic, count in topics.items() for partition in range(count)
        ]
        self._build: Callable[[], Consumer] = lambda: build_consumer(settings, "commit-watch", group=group)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="commit watch", daemon=True)

    def __enter__(self) -> CommitWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        consumer = self._build()
        while not self._stop.wait(_PERIOD_S):
            try:
                found = consumer.committed(self._places, timeout=2)
            except KafkaException:
                continue  # the broker is away, which is what is being tested
            now_s = time.time()
            self.commits += [Commit(now_s, at.topic, at.partition, at.offset) for at in found if at.offset > 0]
        consumer.close()
