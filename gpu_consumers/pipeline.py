"""A worker's three stages around one policy, from accepted records to acknowledged completions.

poll -> fetch: decode, prepare -> infer: batches on the device -> publish: finish, vla.results.v1 -> commit
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping

from gpu_consumers.batching import BatchQueue
from gpu_consumers.cost import CostModel
from gpu_consumers.device_monitor import open_monitor
from gpu_consumers.fetch_stage import FetchStage
from gpu_consumers.heartbeat import INTERVAL_S, Heartbeat
from gpu_consumers.infer_stage import InferStage
from gpu_consumers.jobs import Job
from gpu_consumers.policies.contract import Policy
from gpu_consumers.publish_stage import PublishStage
from gpu_consumers.warm_up import warm_up
from gpu_consumers.watchdog import Watchdog
from runtime.lifecycle import Deadline, Lifecycle, exit_now
from runtime.metrics import Metrics
from runtime.periodic import Periodic
from runtime.processor import ConsumerPort, OnCommit, Processor
from runtime.publisher import PublisherPort
from runtime.rates import EventRate
from runtime.settings import Settings
from runtime.tracing import Tracing
from schemas.cards import Conversion, ModelCard
from schemas.messages import BatchCount, WorkerHeartbeat
from schemas.topics import accepted_topic, worker_group

#: A poll loop that has not come round for this long is stuck.
_STUCK_S = 30.0
_ROOM_BATCHES = 4
#: A policy may take so many times as long as its largest batch is known to take; or POLICY_TIMEOUT_S, if longer.
_PATIENCE = 10
#: Share of that time after which a worker is taken for hung: it is not alive, and no more requests are sent to it.
_SUSPECT = 0.5


def group_of(card: ModelCard) -> str:
    """Consumer group of a deployment's workers."""
    return worker_group(card.deployment)


class Worker:
    """The three stages around one policy.

    conversions: robot type -> the way from the policy's outputs to that robot's action space.
    The processor keeps at most `worker_queue_max_size` records in flight, or four full batches if that is more: no
    queue between the stages holds more than these.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        policy: Policy,
        conversions: Mapping[str, Conversion],
        publisher: PublisherPort,
        build_consumer: Callable[[OnCommit], ConsumerPort],
        metrics: Metrics,
        lifecycle: Lifecycle,
        tracing: Tracing | None = None,
        on_hang: Callable[[str], None] = exit_now,
    ) -> None:
        card = policy.card
        self.worker_id = f"{socket.gethostname()}-{os.getpid()}-{settings.role_instance}"
        self._policy = policy
        self._policy_timeout_s = settings.policy_timeout_s
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._on_hang = on_hang
        # Room for a batch on the device, one to follow, and choice enough that no customer shuts another out.
        room = max(settings.worker_queue_max_size, _ROOM_BATCHES * card.batch_sizes[-1])
        self._cost = CostModel()
        self._watchdog = Watchdog()
        self._monitor = open_monitor(settings, policy.device, self.worker_id, metrics)
        self._poll_interval_s = settings.gpu_poll_interval
        self._queue: BatchQueue[Job] = BatchQueue(
            capacity=room,
            batch_sizes=card.batch_sizes,
            cost=self._cost,
            arrivals=EventRate(),
        )
        self._publish = PublishStage(
            policy=policy,
            conversions=conversions,
            watchdog=self._watchdog,
            publisher=publisher,
            metrics=metrics,
            worker_id=self.worker_id,
            group=group_of(card),
            fail=lifecycle.fail,
            tracing=tracing,
        )
        self._infer = InferStage(
            policy=policy,
            queue=self._queue,
            watchdog=self._watchdog,
            publish=self._publish,
            metrics=metrics,
            memory=self._monitor.memory,
            fail=lifecycle.fail,
        )
        self._fetch = FetchStage(
            policy=policy,
            ready=self._infer.offer,
            too_late=self._infer.too_late,
            watchdog=self._watchdog,
            publish=self._publish,
            metrics=metrics,
            threads=settings.worker_fetch_threads,
            fail=lifecycle.fail,
        )
        self._processor = Processor(
            build=build_consumer,
            topics=[accepted_topic(card.deployment)],
            handler=self._fetch,
            metrics=metrics,
            max_in_flight=room,
        )
        self._heartbeat = Heartbeat(
            publisher=publisher,
            worker_id=self.worker_id,
            policy=policy,
            cost=self._cost,
            monitor=self._monitor,
            fill=self._fill_heartbeat,
        )
        self._warm = False

    def run(self) -> None:
        """Warm up, then serve until the lifecycle stops. What it starts is closed by the lifecycle, last one first."""
        lifecycle, fail = self._lifecycle, self._lifecycle.fail
        warm_up(self._policy, self._queue, self._cost)
        self._metrics.model_loaded.clear()
        self._metrics.model_loaded.labels(self._policy.card.deployment, self._policy.revision).set(1)
        self._warm = True
        pulse = Periodic("pulse", INTERVAL_S, self._pulse, fail)
        watch = Periodic("device monitor", self._poll_interval_s, self._monitor.poll, fail)
        for stage in (self._publish, self._infer, self._fetch):
            stage.start()
            lifecycle.on_close(type(stage).__name__, stage.close)
        lifecycle.on_close("processor", self._stop_intake)
        lifecycle.on_close("pulse", lambda deadline: self._leave(pulse, deadline))
        lifecycle.on_close("device monitor", watch.close)
        pulse.start()
        watch.start()
        self._processor.run(lifecycle.stopping)

    def waiting(self) -> list[str]:
        """What this worker waits for before it takes requests."""
        # At the second heartbeat API and gate have long read the first: who is ready is asked, too.
        known = self._heartbeat.acknowledged >= 2
        steps = {"the warm-up": self._warm, "its group": self._processor.joined, "its heartbeats": known}
        steps["the policy's server"] = not self._infer.away
        return [name for name, passed in steps.items() if not passed]

    @property
    def queue_depth(self) -> int:
        """Requests that wait for the device."""
        return self._infer.depth

    @property
    def policy_limit_s(self) -> float:
        """How long the policy may stay in one step. Grows with a device that has become slow, rather than ending it."""
        return max(self._policy_timeout_s, _PATIENCE * self._cost.seconds(self._queue.max_batch))

    def alive(self) -> bool:
        return not self._warm or (self._processor.since_poll_s < _STUCK_S and not self._hung(_SUSPECT))

    def _hung(self, share: float = 1.0) -> bool:
        return self._watchdog.longest()[1] > share * self.policy_limit_s

    def _pulse(self) -> None:
        if self._hung():
            step, inside_s = self._watchdog.longest()
            self._on_hang(f"the policy has not come back from {step} for {inside_s:.0f} s")
        self._metrics.queue_depth.labels(self._policy.card.deployment).set(self.queue_depth)
        if self._infer.away:
            # Who asks now is told at once that nobody serves; what is here already is tried until its deadline.
            self._heartbeat.leave()
        elif self._warm and self._processor.joined and not self._hung(_SUSPECT):
            self._heartbeat.beat()

    def _stop_intake(self, deadline: Deadline) -> None:
        """Drain and commit. After a failure nothing is waited for: what is in flight is read again."""
        self._processor.close(deadline if self._lifecycle.failure is None else Deadline(0.0))

    def _leave(self, pulse: Periodic, deadline: Deadline) -> None:
        pulse.close(deadline)
        self._heartbeat.leave()

    def _fill_heartbeat(self, heartbeat: WorkerHeartbeat) -> None:
        heartbeat.queue_depth = self.queue_depth
        heartbeat.in_flight = self._processor.in_flight
        heartbeat.max_batch = self._infer.max_batch
        heartbeat.completed_total = self._publish.completed_total
        heartbeat.refused_total = self._publish.refused_total
        heartbeat.latency_p50_s, heartbeat.latency_p95_s = self._publish.latency_s
        heartbeat.batches.extend(BatchCount(size=size, count=count) for size, count in self._infer.batches)
