"""Looks at a worker's GPU every few seconds: figures for metrics and heartbeats, and the word that it is sick."""

from __future__ import annotations

import logging
from typing import Any, Protocol

from gpu_consumers.device_health import DeviceHealth
from gpu_consumers.nvml import Library, NvmlError, Reading
from runtime.errors import DeviceFault
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.messages import WorkerHeartbeat

log = logging.getLogger(__name__)


class DevicePort(Protocol):
    """What a monitor needs of `gpu_consumers.nvml.Device`."""

    def read(self) -> Reading: ...

    def critical_events(self) -> list[int]: ...


class DeviceMonitor:
    """`latest` is the last reading, None without a GPU that can be looked at."""

    def __init__(self, device: DevicePort | None, *, labels: tuple[str, str], uuid: str, metrics: Metrics) -> None:
        """labels: worker id and torch's name of the device."""
        self._device = device
        self._labels = labels
        self._uuid = uuid
        self._metrics = metrics
        self._health = DeviceHealth()
        self._memory = MemoryMeter(labels[1])
        self._throttled: tuple[str, ...] = ()
        self.latest: Reading | None = None

    @property
    def memory(self) -> MemoryMeter:
        return self._memory

    def poll(self) -> None:
        """Take a look. Raises DeviceFault for a device that must not serve any more."""
        if self._device is None:
            return
        try:
            reading, xids = self._device.read(), self._device.critical_events()
        except NvmlError as error:
            if error.unsupported:
                log.warning(
                    "%s tells nothing of itself: %s", self._labels[1], error, extra={"action": "device_monitor"}
                )
                self._device = self.latest = None
                return
            fault = self._health.silence(error)
            log.warning("no reading of %s: %s", self._labels[1], error, extra={"action": "device_monitor"})
            self.latest = None
        else:
            fault = self._health.judge(reading, xids)
            self.latest = reading
            self._publish(reading)
        if fault:
            self._metrics.gpu_faults.labels(*self._labels).inc()
            raise DeviceFault(f"{self._labels[1]} ({self._uuid}) leaves the group: {fault}")

    def fill(self, heartbeat: WorkerHeartbeat) -> None:
        """Put the last reading into a heartbeat; its fields stay absent without one."""
        heartbeat.gpu_memory_per_inference_bytes = self._memory.per_inference_bytes
        reading = self.latest
        if reading is None:
            return
        heartbeat.gpu_uuid = self._uuid
        heartbeat.gpu_memory_used_bytes = reading.memory_used_bytes
        heartbeat.gpu_memory_total_bytes = reading.memory_total_bytes
        if reading.utilization_percent is not None:
            heartbeat.gpu_utilization = reading.utilization_percent
        if reading.temperature_celsius is not None:
            heartbeat.gpu_temperature_celsius = reading.temperature_celsius
        if reading.power_watts is not None:
            heartbeat.gpu_power_watts = reading.power_watts
        heartbeat.gpu_throttle_reasons[:] = reading.throttle_reasons

    def _publish(self, reading: Reading) -> None:
        metrics, labels = self._metrics, self._labels
        metrics.gpu_memory_used.labels(*labels).set(reading.memory_used_bytes)
        metrics.gpu_memory_total.labels(*labels).set(reading.memory_total_bytes)
        used_percent = 100 * reading.memory_used_bytes / max(reading.memory_total_bytes, 1)
        metrics.gpu_memory_utilization.labels(*labels).set(used_percent)
        for gauge, value in (
            (metrics.gpu_utilization, reading.utilization_percent),
            (metrics.gpu_temperature, reading.temperature_celsius),
            (metrics.gpu_power, reading.power_watts),
        ):
            if value is not None:
                gauge.labels(*labels).set(value)
        metrics.gpu_memory_per_inference.labels(*labels).set(self._memory.per_inference_bytes)
        for reason in {*self._throttled, *reading.throttle_reasons}:
            metrics.gpu_throttled.labels(*labels, reason).set(reason in reading.throttle_reasons)
        if reading.throttle_reasons != self._throttled:
            said = ", ".join(reading.throttle_reasons) or "nothing any more"
            log.warning("%s is slowed down by: %s", labels[1], said, extra={"action": "throttle"})
        self._throttled = reading.throttle_reasons


class MemoryMeter:
    """How much device memory one request of a batch takes beyond what lay there before it. Of the infer thread."""

    def __init__(self, device: str, cuda: Any = None) -> None:
        """cuda: torch.cuda; found by itself where the device is one of CUDA's."""
        if cuda is None and device.startswith("cuda"):
            import torch

            cuda = torch.cuda
        self._cuda = cuda
        self._device = device
        self._before = 0
        #: Of the last batch; 0: not known.
        self.per_inference_bytes = 0

    def begin(self) -> None:
        if self._cuda is not None:
            self._cuda.reset_peak_memory_stats(self._device)
            self._before = self._cuda.memory_allocated(self._device)

    def end(self, size: int) -> None:
        if self._cuda is not None:
            peak = self._cuda.max_memory_allocated(self._device)
            self.per_inference_bytes = max(int(peak) - int(self._before), 0) // size


def open_monitor(settings: Settings, device: str, worker_id: str, metrics: Metrics) -> DeviceMonitor:
    """A monitor of a torch device; one that never reads anything for a CPU, and where the library is missing."""
    labels = (worker_id, device)
    if not device.startswith("cuda") or not settings.enable_gpu_monitoring:
        return DeviceMonitor(None, labels=labels, uuid="", metrics=metrics)
    import torch

    # By UUID: torch numbers only the devices that it may see, the library numbers all.
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    try:
        return DeviceMonitor(Library().device(uuid), labels=labels, uuid=uuid, metrics=metrics)
    except NvmlError as error:
        log.warning("no GPU readings: %s", error, extra={"action": "device_monitor"})
        return DeviceMonitor(None, labels=labels, uuid=uuid, metrics=metrics)
