"""Second stage: the only thread that touches the device. Forms batches, runs them, hands the rest on."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from gpu_consumers.batching import BatchQueue, Dispatch, Wait, Waiting
from gpu_consumers.cost import CostModel
from gpu_consumers.devices import is_out_of_memory, release_memory
from gpu_consumers.jobs import Job
from gpu_consumers.policies.contract import Policy, PolicyError
from gpu_consumers.publish_stage import Inferred, PublishStage, Refused
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from schemas.codes import Code

log = logging.getLogger(__name__)


class InferStage:
    """A batch that fails is run again one by one, so that only the culprit is refused."""

    def __init__(
        self,
        *,
        policy: Policy,
        queue: BatchQueue[Job],
        cost: CostModel,
        publish: PublishStage,
        metrics: Metrics,
        fail: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._queue = queue
        self._cost = cost
        self._publish = publish
        self._metrics = metrics
        self._fail = fail
        self._clock = clock
        self._deployment = policy.card.deployment
        #: Guards the queue and what follows; notified when something arrives or the stage stops.
        self._arrived = threading.Condition()
        #: Batches to run again, ahead of the queue.
        self._again: deque[list[Job]] = deque()
        self._stopping = False
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="infer", daemon=True)

    @property
    def depth(self) -> int:
        """Requests that wait for the device."""
        return len(self._queue)

    @property
    def running_s(self) -> float:
        """How long the batch on the device has been running; 0 for an idle device."""
        since = self._running_since
        return 0.0 if since is None else self._clock() - since

    @property
    def max_batch(self) -> int:
        return self._queue.max_batch

    def start(self) -> None:
        self._thread.start()

    def offer(self, job: Job) -> None:
        """Take a prepared job in; older waiting ones of its robot end here if it asks for the latest only."""
        waiting = Waiting(job.robot, self._clock(), job.deadline_s, job.request.options.latest_only, job)
        with self._arrived:
            superseded = self._queue.offer(waiting)
            self._arrived.notify()
        for older in superseded:
            self._metrics.superseded.labels(self._deployment).inc()
            self._publish.put(Refused(older.item, Code.SUPERSEDED, "a newer observation of this robot took its place"))

    def run_again(self, jobs: Sequence[Job]) -> None:
        """Run these one by one: something went wrong while they were together."""
        self._first([[job] for job in jobs])

    def close(self, deadline: Deadline) -> None:
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=deadline.remaining_s)

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                self._infer(batch)
        except Exception as error:
            self._fail(error)

    def _next_batch(self) -> list[Job] | None:
        """Wait for the next batch; None once the stage stops."""
        with self._arrived:
            while not self._stopping:
                now = self._clock()
                self._refuse_expired([waiting.item for waiting in self._queue.take_expired(now)])
                if self._again:
                    batch = self._again.popleft()
                    alive = [job for job in batch if job.deadline_s > now]
                    self._refuse_expired([job for job in batch if job.deadline_s <= now])
                    if alive:
                        return alive
                    continue
                decision = self._queue.decide(now)
                if isinstance(decision, Dispatch):
                    for waiting in decision.batch:
                        self._metrics.queue_wait.labels(self._deployment).observe(now - waiting.item.received_s)
                    return [waiting.item for waiting in decision.batch]
                self._arrived.wait(decision.seconds if isinstance(decision, Wait) else None)
        return None

    def _infer(self, batch: list[Job]) -> None:
        start_us = int(time.time() * 1e6)
        self._running_since = started = self._clock()
        try:
            raw = self._policy.infer([job.prepared for job in batch])
        except Exception as error:
            self._failed(batch, error)
            return
        finally:
            self._running_since = None
        took_s = self._clock() - started
        with self._arrived:
            self._cost.observe(len(batch), took_s)
        end_us = int(time.time() * 1e6)
        for job in batch:
            job.times.infer_start_us, job.times.infer_end_us = start_us, end_us
        self._metrics.infer_duration.labels(self._deployment).observe(took_s)
        self._metrics.batch_size.labels(self._deployment).observe(len(batch))
        self._publish.put(Inferred(batch, raw, self.run_again))

    def _failed(self, batch: list[Job], error: Exception) -> None:
        if is_out_of_memory(error):
            release_memory()
        if len(batch) == 1:
            self._publish.put(refusal_of(batch[0], error))
            return
        self._metrics.retries.labels("infer", type(error).__name__).inc()
        if is_out_of_memory(error):
            half = len(batch) // 2
            log.warning("out of memory at a batch of %d: at most %d from now on", len(batch), half)
            with self._arrived:
                self._queue.limit_batch(half)
            self._first([batch[start : start + half] for start in range(0, len(batch), half)])
        else:
            log.warning("a batch of %d failed, running it one by one: %r", len(batch), error, extra={"action": "infer"})
            self.run_again(batch)

    def _first(self, batches: list[list[Job]]) -> None:
        """Run these next, in this order: nothing of their robots may overtake them."""
        with self._arrived:
            self._again.extendleft(reversed(batches))
            self._arrived.notify()

    def _refuse_expired(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._metrics.deadline_drops.labels("gpu_batch").inc()
            self._publish.put(Refused(job, Code.EXPIRED, "its deadline passed before it reached the device"))


def refusal_of(job: Job, error: Exception) -> Refused:
    """What a request gets that the policy alone failed on: its reason, or a plain failure with a log line."""
    if isinstance(error, PolicyError):
        return Refused(job, Code.POLICY_REFUSED, str(error))
    log.error(
        "the policy failed on one request: %r",
        error,
        extra={"action": "infer", "request_id": job.request.request_id, "robot_id": job.request.robot_id},
        exc_info=error,
    )
    return Refused(job, Code.POLICY_FAILED, "the policy failed on this observation")
