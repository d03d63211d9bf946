"""The autoscaler at work on an embedded stack: reads the group's lag from the broker, adds and drains processes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.scaling.autoscaler import Autoscaler
from benchmarks.scaling.scaled_object import ScaledObject
from runtime.broker_offsets import KafkaOffsets
from runtime.errors import Unavailable
from runtime.group_lag import behind
from runtime.kafka import build_admin, build_consumer
from runtime.settings import Settings
from runtime.stack.roles import answers_ready
from runtime.stack.scaling import processes_of, want

#: Between two entries of the record. The scaler itself looks every `sync_period`.
_SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """One moment. lag: records that the group has not finished. desired: what the scaler wants; ready: who serves;
    running: with those that start or drain."""

    at_s: float
    lag: int
    desired: int
    ready: int
    running: int


class Lags:
    """How far a group is behind in each partition of a topic. Of one thread."""

    def __init__(self, settings: Settings, group: str, topic: str) -> None:
        self._offsets = KafkaOffsets(
            build_admin(settings, "autoscaler"), lambda name: build_consumer(settings, "autoscaler", group=name)
        )
        self._group, self._topic = group, topic

    def look(self) -> list[int]:
        """Raises Unavailable while the broker does not answer."""
        places = [place for place in self._offsets.places() if place[0] == self._topic]
        committed, bounds = self._offsets.committed(self._group, places), self._offsets.bounds(places)
        return [behind(committed.get(place), low, end) for place, (low, end) in bounds.items()]


class Driver:
    """A thread that scales `role` until the block ends, then leaves as many processes as there are.

    spec: whose durations are those of this run. Begins with the replicas that run.
    """

    def __init__(
        self,
        spec: ScaledObject,
        *,
        lags: Callable[[], list[int]],
        stack_file: Path,
        role: str,
        say: Callable[[str], None],
    ) -> None:
        self._spec = spec
        self._lags = lags
        self._stack_file = stack_file
        self._role = role
        self._say = say
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="autoscaler", daemon=True)
        self._failure: BaseException | None = None
        self.desired = len(processes_of(stack_file, role))
        #: What was seen, in the order of time; Unix epoch.
        self.samples: list[Sample] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def wait_for(self, condition: Callable[[Sample], bool], timeout_s: float) -> bool:
        """Whether a sample that fits comes in time."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self._thread.is_alive():
            if self.samples and condition(self.samples[-1]):
                return True
            time.sleep(0.1)
        return False

    def _run(self) -> None:
        autoscaler, decide_at_s = Autoscaler(self._spec), 0.0
        try:
            while not self._stop.wait(_SAMPLE_S):
                with suppress(Unavailable):
                    lags, now_s = self._lags(), time.monotonic()
                    if now_s >= decide_at_s:
                        decide_at_s = now_s + self._spec.sync_period
                        self._scale(autoscaler.desired(now_s, lags, self.desired), sum(lags))
                    self.samples.append(self._sample(sum(lags)))
        except BaseException as error:
            self._failure = error

    def _scale(self, desired: int, lag: int) -> None:
        if desired != self.desired:
            self._say(f"lag {lag}: {desired} replicas instead of {self.desired}")
            self.desired = desired
            want(self._stack_file, self._role, desired)

    def _sample(self, lag: int) -> Sample:
        processes = processes_of(self._stack_file, self._role)
        ports = [int(process["metrics"].rsplit(":", 1)[1].split("/")[0]) for process in processes]
        return Sample(time.time(), lag, self.desired, sum(map(answers_ready, ports)), len(processes))
