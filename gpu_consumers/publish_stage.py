"""Third stage: finish chunks, write completions, and call a record done once the broker has what it caused."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_consumers.completions import chunk_problem, completion_headers, rejected_completion, result_completion
from gpu_consumers.conversions import conversion_for
from gpu_consumers.jobs import Job
from gpu_consumers.policies.contract import Policy, PolicyError
from gpu_consumers.traces import trace_of
from gpu_consumers.watchdog import Watchdog
from runtime.dead_letters import write_dead_letter
from runtime.errors import Fatal, Poison, Retry, Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import Delivered, PublisherPort
from runtime.tracing import NoTracing, Tracing
from schemas.codes import Code
from schemas.conversions import Conversion, PolicyActions
from schemas.messages import Completion
from schemas.topics import RESULTS

log = logging.getLogger(__name__)

_RETRY_S = 0.1
#: Requests that the latency is told of.
_RECENT = 512


@dataclass(frozen=True, slots=True)
class Inferred:
    """A batch off the device. `run_again` takes back requests whose batch could not be finished together."""

    jobs: Sequence[Job]
    raw: Any
    run_again: Callable[[Sequence[Job]], None]


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that ends without a chunk; `detail` says what to do."""

    job: Job
    code: str
    detail: str
    field: str = ""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that nothing can be made of. `done` is called once its letter is written."""

    record: Record
    error: Poison
    done: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Unacknowledged:
    """A completion that the broker did not take. `not_before_s`: when it is due again, of the stage's clock."""

    job: Job
    completion: Completion
    not_before_s: float


_Item = Inferred | Refused | DeadLetter | _Unacknowledged


class PublishStage:
    """Retries for as long as Kafka is away: until then the record's offset is not committed."""

    def __init__(
        self,
        *,
        policy: Policy,
        conversions: Mapping[str, Conversion],
        watchdog: Watchdog,
        publisher: PublisherPort,
        metrics: Metrics,
        worker_id: str,
        group: str,
        fail: Callable[[BaseException], None],
        tracing: Tracing | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracing = tracing or NoTracing()
        self._policy = policy
        self._card = policy.card
        self._conversions = conversions
        self._watchdog = watchdog
        self._publisher = publisher
        self._metrics = metrics
        self._worker_id = worker_id
        self._group = group
        self._fail = fail
        self._clock = clock
        self._items: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._completed = 0
        self._refused = 0
        self._latencies_s: deque[float] = deque(maxlen=_RECENT)
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)

    @property
    def completed_total(self) -> int:
        """Completions that the broker has."""
        return self._completed

    @property
    def refused_total(self) -> int:
        """Of the completions, those without actions."""
        return self._refused

    @property
    def latency_s(self) -> tuple[float, float]:
        """Median and 95th percentile of the last requests, from the worker's receipt to its completion; 0 at first."""
        recent = sorted(self._latencies_s.copy())
        if not recent:
            return 0.0, 0.0
        return recent[len(recent) // 2], recent[min(len(recent) * 95 // 100, len(recent) - 1)]

    def start(self) -> None:
        self._thread.start()

    def put(self, item: _Item) -> None:
        self._items.put(item)

    def close(self, deadline: Deadline) -> None:
        self._stop.set()
        self._items.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout=deadline.remaining_s)

    def _run(self) -> None:
        try:
            while (item := self._items.get()) is not None:
                with self._metrics.stage_duration.labels("gpu_publish").time():
                    self._handle(item)
        except BaseException as error:
            self._fail(error)

    def _handle(self, item: _Item) -> None:
        match item:
            case Inferred():
                self._finish(item)
            case Refused(job, code, detail, field):
                self._publish(job, rejected_completion(job, code, detail, field=field))
            case DeadLetter():
                self._bury(item)
            case _Unacknowledged(job, completion, not_before_s):
                # Those that failed together are due together: one pause for all of them.
                self._stop.wait(max(not_before_s - self._clock(), 0.0))
                self._publish(job, completion)

    def _finish(self, item: Inferred) -> None:
        size = len(item.jobs)
        try:
            with self._watchdog.watching("finish"):
                chunks = self._policy.finish(item.raw, size)
            if len(chunks) != size:
                raise ValueError(f"the policy gave {len(chunks)} chunks for {size} requests")
        except Exception as error:
            if size > 1:
                log.warning("a batch of %d could not be finished: %r", size, error, extra={"action": "finish"})
                item.run_again(item.jobs)
                return
            refused = isinstance(error, PolicyError)
            if not refused:
                log.exception("the policy's output could not be finished", extra={"action": "finish"})
            job = item.jobs[0]
            code, detail = (
                (Code.POLICY_REFUSED, str(error))
                if refused
                else (Code.POLICY_FAILED, "the policy failed on this observation")
            )
            self._publish(job, rejected_completion(job, code, detail))
            return
        for job, chunk in zip(item.jobs, chunks, strict=True):
            problem = chunk_problem(chunk, self._card)
            if problem is not None:
                log.error("%s", problem, extra={"action": "finish", "request_id": job.request.request_id})
                self._publish(job, rejected_completion(job, Code.POLICY_FAILED, problem))
                continue
            conversion = conversion_for(job.request.robot_type, self._conversions)
            if conversion is None:
                detail = f"{self._card.deployment} does not serve {job.request.robot_type}"
                self._publish(job, rejected_completion(job, Code.EMBODIMENT_MISMATCH, detail, field="robot_type"))
                continue
            completion = result_completion(
                job,
                conversion(PolicyActions(chunk), np.asarray(job.request.state, np.float32)),
                deployment=self._card.deployment,
                revision=self._policy.revision,
                worker_id=self._worker_id,
                batch_size=size,
            )
            self._publish(job, completion)

    def _publish(self, job: Job, completion: Completion) -> None:
        """A result past its deadline never leaves: a stale action is not delivered as fresh."""
        if completion.HasField("result") and job.deadline_s <= self._clock():
            self._metrics.deadline_drops.labels("gpu_publish").inc()
            completion = rejected_completion(job, Code.EXPIRED, "its deadline passed before its actions were ready")

        def report(where: Delivered | None, error: Exception | None) -> None:
            if where is not None:
                self._completed += 1
                self._refused += completion.HasField("rejection")
                self._latencies_s.append(self._clock() - job.received_s)
                job.done()
            elif isinstance(error, Fatal):
                self._fail(error)
            else:
                self._metrics.retries.labels("gpu_publish", type(error).__name__).inc()
                self.put(_Unacknowledged(job, completion, self._clock() + _RETRY_S))

        now_s = time.time()
        completion.times.worker_published_us = int(now_s * 1e6)
        if not job.traceparent:
            job.traceparent = trace_of(self._tracing, job, completion)
        try:
            self._publisher.publish(
                RESULTS,
                completion.SerializeToString(),
                key=job.request.robot_id.encode(),
                headers=completion_headers(job, now_s=now_s),
                partition=job.envelope.source.partition,
                on_delivery=report,
            )
        except (Retry, Unavailable) as error:
            report(None, error)

    def _bury(self, item: DeadLetter) -> None:
        try:
            write_dead_letter(
                self._publisher,
                self._metrics,
                item.record,
                reason=item.error.reason,
                stage="decode",
                group=self._group,
                error=item.error,
            )
        except (Retry, Unavailable) as error:
            self._metrics.retries.labels("dead_letter", type(error).__name__).inc()
            if not self._stop.wait(_RETRY_S):
                self.put(item)
            return
        item.done()
