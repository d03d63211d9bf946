"""What a worker says of itself once a second, so that API and gate know where requests can be served."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable

from gpu_consumers.cost import CostModel
from gpu_consumers.device_monitor import DeviceMonitor
from gpu_consumers.devices import device_name
from gpu_consumers.policies.contract import Policy
from runtime.errors import VlastreamError
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.messages import WorkerHeartbeat
from schemas.topics import WORKERS

log = logging.getLogger(__name__)

INTERVAL_S = 1.0


class Heartbeat:
    """Writes the worker's record to vla.workers.v1, and its tombstone when it leaves."""

    def __init__(
        self,
        *,
        publisher: PublisherPort,
        worker_id: str,
        policy: Policy,
        cost: CostModel,
        monitor: DeviceMonitor,
        fill: Callable[[WorkerHeartbeat], None],
    ) -> None:
        self._publisher = publisher
        self._worker_id = worker_id
        self._policy = policy
        self._cost = cost
        self._monitor = monitor
        #: Sets the figures of the moment: queue, records in flight, completions.
        self._fill = fill
        self._device_name = device_name(policy.device)
        self._sent = False
        #: Heartbeats that the broker has.
        self.acknowledged = 0

    def beat(self) -> None:
        card = self._policy.card
        record = WorkerHeartbeat(
            worker_id=self._worker_id,
            deployment=card.deployment,
            model=card.model,
            model_revision=self._policy.revision,
            device=self._policy.device,
            device_name=self._device_name,
            cost_per_item_s=self._cost.per_item_s,
            cost_base_s=self._cost.base_s,
            sent_at_ms=int(time.time() * 1000),
            host=socket.gethostname(),
        )
        self._fill(record)
        self._monitor.fill(record)
        self._write(record.SerializeToString())
        self._sent = True

    def leave(self) -> None:
        """A clean stop, or a server that is away: whoever reads the topic forgets this worker at once."""
        if self._sent:
            self._sent = False
            self._write(None)

    def _write(self, value: bytes | None) -> None:
        headers = h.cloud_event(
            event_type="vla.worker.v1", event_id=self._worker_id, source="gpu_consumers", now_s=time.time()
        )
        try:
            self._publisher.publish(
                WORKERS, value, key=self._worker_id.encode(), headers=h.encode(headers), on_delivery=self._delivered
            )
        except VlastreamError as error:
            # The next second brings the next one.
            log.warning("heartbeat not sent: %s", error, extra={"action": "heartbeat"})

    def _delivered(self, where: Delivered | None, error: Exception | None) -> None:
        if where is not None:
            self.acknowledged += 1
