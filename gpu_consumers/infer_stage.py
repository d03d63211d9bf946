"""Second stage: the only thread that touches the device. Forms batches, runs them, hands the rest on."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from gpu_consumers.batching import BatchQueue, Dispatch, Wait, Waiting
from gpu_consumers.device_monitor import MemoryMeter
from gpu_consumers.devices import is_out_of_memory, release_memory
from gpu_consumers.jobs import Job
from gpu_consumers.policies.contract import Policy, PolicyError, RemotePolicy
from gpu_consumers.publish_stage import Inferred, PublishStage, Refused
from gpu_consumers.warm_up import blank
from gpu_consumers.watchdog import Watchdog
from runtime.errors import Fatal, Retry
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from schemas.codes import Code

log = logging.getLogger(__name__)

#: What the way back takes: results topic, action gate, reply. The device is done so long before the deadline, or
#: by a tenth of the time that was left on arrival where that is less.
_WAY_BACK_S = 0.025
_WAY_BACK_SHARE = 0.1


class InferStage:
    """A batch that fails is halved until only the culprit is refused.

    Where a blank request fails as well it is the device that is broken, and the process ends with nothing refused.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        queue: BatchQueue[Job],
        watchdog: Watchdog,
        publish: PublishStage,
        metrics: Metrics,
        memory: MemoryMeter,
        fail: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = policy
        self._queue = queue
        self._watchdog = watchdog
        self._publish = publish
        self._metrics = metrics
        self._memory = memory
        self._fail = fail
        self._clock = clock
        self._deployment = policy.card.deployment
        #: Guards the queue and what follows; notified when something arrives or the stage stops.
        self._arrived = threading.Condition()
        #: Batches to run again, ahead of the queue.
        self._again: deque[list[Job]] = deque()
        self._batches: Counter[int] = Counter()
        #: Until when a server that is away is left alone; None while it is there.
        self._rest_until_s: float | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="infer", daemon=True)

    @property
    def depth(self) -> int:
        """Requests that wait for the device."""
        return len(self._queue)

    @property
    def away(self) -> bool:
        """Whether the server that the policy runs on did not answer the last time."""
        return self._rest_until_s is not None

    @property
    def max_batch(self) -> int:
        return self._queue.max_batch

    @property
    def batches(self) -> list[tuple[int, int]]:
        """Sizes of the batches that the device has done, and how many of each."""
        return sorted(self._batches.copy().items())

    def start(self) -> None:
        self._thread.start()

    def offer(self, job: Job) -> None:
        """Take a prepared job in; older waiting ones of its robot end here if it asks for the latest only."""
        waiting = Waiting(
            robot=job.robot,
            arrived_s=self._clock(),
            deadline_s=_due_s(job),
            latest_only=job.request.options.latest_only,
            item=job,
            customer=job.envelope.customer_id,
        )
        with self._arrived:
            superseded = self._queue.offer(waiting)
            # Under overload the log is read on while the device is busy, so that the next batch is of the young.
            crowded = len(self._queue) > self._queue.max_batch
            expired = self._queue.take_expired(self._clock()) if crowded else []
            self._arrived.notify()
        self._refuse_expired([older.item for older in expired])
        for older in superseded:
            self._metrics.superseded.labels(self._deployment).inc()
            self._publish.put(Refused(older.item, Code.SUPERSEDED, "a newer observation of this robot took its place"))

    def too_late(self, job: Job) -> bool:
        """Whether the device cannot be done with it before its deadline, even if it were the next one."""
        with self._arrived:
            return self._queue.too_late(_due_s(job), self._clock())

    def run_again(self, jobs: Sequence[Job]) -> None:
        """Run these in two halves: something went wrong while they were together."""
        middle = (len(jobs) + 1) // 2
        self._first([list(half) for half in (jobs[:middle], jobs[middle:]) if half])

    def close(self, deadline: Deadline) -> None:
        with self._arrived:
            self._stopping = True
            self._arrived.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=deadline.remaining_s)

    def _run(self) -> None:
        try:
            while (batch := self._next_batch()) is not None:
                if batch:
                    self._infer(batch)
                else:
                    self._probe()
        except BaseException as error:
            self._fail(error)

    def _next_batch(self) -> list[Job] | None:
        """Wait for the next batch; None once the stage stops, nothing in it where a server is to be looked for."""
        with self._arrived:
            while not self._stopping:
                now = self._clock()
                self._refuse_expired([waiting.item for waiting in self._queue.take_expired(now)])
                if self._rest_until_s is not None and now < self._rest_until_s:
                    self._arrived.wait(self._rest_until_s - now)
                    continue
                if self.away and not self._again and not len(self._queue):
                    return []
                if self._again:
                    batch = self._again.popleft()
                    alive = [job for job in batch if not self._queue.too_late(_due_s(job), now)]
                    self._refuse_expired([job for job in batch if self._queue.too_late(_due_s(job), now)])
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
        started = self._clock()
        try:
            self._memory.begin()
            with self._watchdog.watching("infer"):
                raw = self._policy.infer([job.prepared for job in batch])
            self._memory.end(len(batch))
        except Retry as error:
            self._wait_for_server(batch, error)
            return
        except Fatal:
            raise
        except Exception as error:
            self._failed(batch, error)
            return
        self._rest_until_s = None
        ended = self._clock()
        took_s = ended - started
        with self._arrived:
            self._queue.measured(len(batch), took_s, ended)
            self._batches[len(batch)] += 1
        end_us = int(time.time() * 1e6)
        for job in batch:
            job.times.infer_start_us, job.times.infer_end_us = start_us, end_us
        self._metrics.infer_duration.labels(self._deployment).observe(took_s)
        self._metrics.batch_size.labels(self._deployment).observe(len(batch))
        self._publish.put(Inferred(batch, raw, self.run_again))

    def _failed(self, batch: list[Job], error: Exception) -> None:
        with self._arrived:
            self._queue.device_free()
        if is_out_of_memory(error):
            release_memory()
        if len(batch) == 1:
            if not isinstance(error, PolicyError):
                self._prove_device(error)
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
            log.warning("a batch of %d failed, running it in halves: %r", len(batch), error, extra={"action": "infer"})
            self.run_again(batch)

    def _wait_for_server(self, batch: list[Job], error: Retry) -> None:
        """Run them again, ahead of all others, as long as their deadlines allow."""
        if not self.away:
            log.warning("waiting: %s", error, extra={"action": "server_away"})
        self._metrics.retries.labels("infer", "Retry").inc()
        with self._arrived:
            self._queue.device_free()
        self._first([batch])
        self._rest_until_s = self._clock() + error.after_s

    def _probe(self) -> None:
        """Look for a server that is away while nobody asks for it."""
        if not isinstance(self._policy, RemotePolicy):
            self._rest_until_s = None
            return
        try:
            with self._watchdog.watching("probe"):
                self._policy.probe()
        except Retry as error:
            self._rest_until_s = self._clock() + error.after_s
            return
        log.info("the policy's server is back", extra={"action": "server_back"})
        self._rest_until_s = None

    def _prove_device(self, cause: Exception) -> None:
        """Raises Fatal where the device fails on a blank request as it did on a robot's.

        A device in an error state fails at once, and would otherwise refuse requests faster than others serve them.
        """
        try:
            with self._watchdog.watching("infer"):
                self._policy.infer([self._policy.prepare(blank(self._policy))])
        except Exception as error:
            raise Fatal(f"the device fails on everything since {cause!r}: {error!r}") from error

    def _first(self, batches: list[list[Job]]) -> None:
        """Run these next, in this order: nothing of their robots may overtake them."""
        with self._arrived:
            self._again.extendleft(reversed(batches))
            self._arrived.notify()

    def _refuse_expired(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._metrics.deadline_drops.labels("gpu_batch").inc()
            self._publish.put(Refused(job, Code.EXPIRED, "the device could not have been done before its deadline"))


def _due_s(job: Job) -> float:
    """When the device has to be done with it, so that its robot gets the actions in time."""
    left_s = max(job.deadline_s - job.received_s, 0.0)
    return job.deadline_s - min(_WAY_BACK_S, _WAY_BACK_SHARE * left_s)


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
