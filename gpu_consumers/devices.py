"""Which device a worker runs on, and what NVIDIA's management library says of it. None where there is no GPU."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from typing import Any

from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.cards import ModelCard
from schemas.messages import WorkerHeartbeat

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at a GPU: percent, bytes, degrees Celsius."""

    utilization_percent: float
    memory_used_bytes: int
    memory_total_bytes: int
    temperature_celsius: float


def choose_device(settings: Settings, card: ModelCard) -> str:
    """The torch name of the device for a deployment. A policy without weights never makes this process load torch."""
    return best_device(settings) if card.weights else "cpu"


def best_device(settings: Settings) -> str:
    """The torch name of the GPU that the settings name, the CPU where there is none."""
    import torch

    torch.set_num_threads(settings.torch_threads)
    return f"cuda:{settings.gpu_device}" if torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """What the device calls itself; its torch name for a CPU."""
    if not device.startswith("cuda"):
        return device
    import torch

    return str(torch.cuda.get_device_name(device))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device (torch) or the machine ran out of memory. Asks by name, so that torch need not be there."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"OutOfMemoryError", "MemoryError"})


def release_memory() -> None:
    """Give cached blocks back to the device after it ran out of memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


class DeviceMonitor:
    """Looks at one GPU whenever `poll` is called; `latest` is the last reading, None without a GPU."""

    def __init__(self, device: str, worker_id: str, metrics: Metrics) -> None:
        self._device = device
        self._worker_id = worker_id
        self._metrics = metrics
        self._handle: Any = None
        self.latest: Reading | None = None
        if device.startswith("cuda"):
            self._handle = _open(device)

    def poll(self) -> None:
        """Take a reading. A library that fails once is not asked again."""
        if self._handle is None:
            return
        try:
            self.latest = _read(self._handle)
        except Exception as error:
            # pynvml raises a class of its own for each of the driver's answers.
            log.warning("no more GPU readings: %s", error, extra={"action": "device_monitor"})
            self._handle = self.latest = None
            return
        labels = (self._worker_id, self._device)
        self._metrics.gpu_utilization.labels(*labels).set(self.latest.utilization_percent)
        self._metrics.gpu_memory_used.labels(*labels).set(self.latest.memory_used_bytes)
        self._metrics.gpu_memory_utilization.labels(*labels).set(
            100 * self.latest.memory_used_bytes / max(self.latest.memory_total_bytes, 1)
        )

    def fill(self, heartbeat: WorkerHeartbeat) -> None:
        """Put the last reading into a heartbeat; its fields stay 0 without one."""
        if self.latest is not None:
            heartbeat.gpu_utilization = self.latest.utilization_percent
            heartbeat.gpu_memory_used_bytes = self.latest.memory_used_bytes
            heartbeat.gpu_memory_total_bytes = self.latest.memory_total_bytes
            heartbeat.gpu_temperature_celsius = self.latest.temperature_celsius


def _open(device: str) -> Any:
    """The library's handle of a torch device, None where the library or the driver is missing."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        # By UUID: torch numbers only the devices that it may see, the library numbers all.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml.nvmlDeviceGetHandleByUUID(uuid.encode())
    except Exception as error:
        log.warning("no GPU readings: %s", error, extra={"action": "device_monitor"})
        return None


def _read(handle: Any) -> Reading:
    import pynvml

    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Reading(
        utilization_percent=float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
        memory_used_bytes=int(memory.used),
        memory_total_bytes=int(memory.total),
        temperature_celsius=float(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)),
    )
