"""First stage: decode the message and its images and let the policy prepare them, off the poll thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
import zlib
from collections.abc import Callable

from gpu_consumers.jobs import Job, new_job, observe, read_envelope, read_request
from gpu_consumers.policies.contract import Policy, PolicyError
from gpu_consumers.publish_stage import DeadLetter, PublishStage, Refused
from gpu_consumers.watchdog import Watchdog
from runtime.errors import Poison, Reject
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from schemas.codes import Code
from schemas.messages import InferenceRequest

log = logging.getLogger(__name__)

_Work = tuple[Record, Callable[[], None], float]


class FetchStage:
    """The processor's handler. Its queues hold no more than the processor keeps in flight.

    Records of one robot go through one thread, so that their order holds.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        ready: Callable[[Job], None],
        too_late: Callable[[Job], bool],
        watchdog: Watchdog,
        publish: PublishStage,
        metrics: Metrics,
        threads: int,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._policy = policy
        self._ready = ready
        self._too_late = too_late
        self._watchdog = watchdog
        self._publish = publish
        self._metrics = metrics
        self._fail = fail
        self._queues: list[queue.SimpleQueue[_Work | None]] = [queue.SimpleQueue() for _ in range(threads)]
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"fetch {index}", daemon=True)
            for index, work in enumerate(self._queues)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def submit(self, record: Record, done: Callable[[], None]) -> None:
        chosen = zlib.crc32(record.key or b"") % len(self._queues)
        self._queues[chosen].put((record, done, time.monotonic()))

    def close(self, deadline: Deadline) -> None:
        for work in self._queues:
            work.put(None)
        for thread in self._threads:
            thread.join(timeout=deadline.remaining_s)

    def _run(self, work: queue.SimpleQueue[_Work | None]) -> None:
        try:
            while (item := work.get()) is not None:
                with self._metrics.stage_duration.labels("gpu_fetch").time():
                    self._fetch(*item)
        except BaseException as error:
            self._fail(error)

    def _fetch(self, record: Record, done: Callable[[], None], received_s: float) -> None:
        try:
            envelope = read_envelope(record)
        except Poison as error:
            self._publish.put(DeadLetter(record, error, done))
            return
        now_s = time.time() - (time.monotonic() - received_s)
        try:
            request = read_request(record)
        except Poison as error:
            # The gate accepted this request, so its robot waits for an outcome beside the dead letter.
            nameless = InferenceRequest(
                request_id=envelope.request_id, robot_id=(record.key or b"").decode("utf-8", "replace")
            )
            job = new_job(envelope, nameless, done, received_s=received_s, now_s=now_s)
            refusal = Refused(job, Code.UNDECODABLE, "the request could not be read: send it again")
            self._publish.put(DeadLetter(record, error, lambda: self._publish.put(refusal)))
            return
        job = new_job(envelope, request, done, received_s=received_s, now_s=now_s)
        if self._too_late(job):
            # Before its images are decoded: under overload most of the log is read only to be refused.
            self._metrics.deadline_drops.labels("gpu_fetch").inc()
            self._publish.put(Refused(job, Code.EXPIRED, "its deadline passed while it waited for a worker"))
            return
        with self._watchdog.watching("prepare"):
            refusal_or_none = self._prepare(job)
        if refusal_or_none is None:
            self._ready(job)
        else:
            self._publish.put(refusal_or_none)

    def _prepare(self, job: Job) -> Refused | None:
        try:
            job.prepared = self._policy.prepare(observe(job, self._policy.card))
        except Reject as error:
            return Refused(job, error.code, str(error), field=error.field)
        except PolicyError as error:
            return Refused(job, Code.POLICY_REFUSED, str(error))
        except Exception as error:
            log.exception(
                "prepare failed",
                extra={"action": "prepare", "request_id": job.request.request_id, "reason": repr(error)},
            )
            return Refused(job, Code.POLICY_FAILED, "the policy failed on this observation")
        return None
