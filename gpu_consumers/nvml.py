"""NVIDIA's management library, as far as this project asks it anything. The only module that imports pynvml.

Two packages bring a module of that name: nvidia-ml-py3 (old, kept for who has it) and nvidia-ml-py. Only calls and
constants that both have are used; bits and codes that the old one does not name are written out here (nvml.h).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Bits of the clocks' throttle reasons (nvml.h, nvmlClocksThrottleReason*). An idle GPU's low clocks (bit 0) are none.
_IDLE = 0x1
_REASONS = {
    0x2: "clocks_setting",
    0x4: "power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal",
    0x40: "hw_thermal",
    0x80: "power_brake",
    0x100: "display_clocks",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a GPU. None: this device or driver does not tell."""

    memory_used_bytes: int
    memory_total_bytes: int
    #: A GPU that is cut into MIG instances does not tell.
    utilization_percent: float | None = None
    temperature_celsius: float | None = None
    power_watts: float | None = None
    #: Of what slows it down now; empty: nothing.
    throttle_reasons: tuple[str, ...] = ()
    #: Memory errors that ECC could not mend, since the driver was loaded.
    uncorrected_errors: int | None = None


class NvmlError(Exception):
    """The library did not answer.

    lost: the device is gone until somebody resets it or the host. unsupported: this device or driver never tells.
    """

    def __init__(self, message: str, *, lost: bool = False, unsupported: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
        self.unsupported = unsupported


class Library:
    """An initialised NVML. Raises NvmlError where there is no driver, or no package to ask it by."""

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlError(f"no NVML binding is installed: {error}") from error
        self._nvml: Any = pynvml
        self._call(pynvml.nvmlInit)

    def uuids(self) -> list[str]:
        """Of every device that answers, in the order of the bus. One that does not answer is left out."""
        found = []
        for index in range(int(self._call(self._nvml.nvmlDeviceGetCount))):
            try:
                handle = self._call(self._nvml.nvmlDeviceGetHandleByIndex, index)
                found.append(_text(self._call(self._nvml.nvmlDeviceGetUUID, handle)))
            except NvmlError:
                continue
        return found

    def device(self, uuid: str) -> Device:
        """uuid: "GPU-..."; the order in which CUDA numbers devices is another one. Raises NvmlError."""
        handle = self._call(self._nvml.nvmlDeviceGetHandleByUUID, uuid.encode())
        return Device(self._nvml, self._call, handle)

    def close(self) -> None:
        self._call(self._nvml.nvmlShutdown)

    def _call(self, function: Callable[..., Any], *arguments: object) -> Any:
        try:
            return function(*arguments)
        except self._nvml.NVMLError as error:
            nvml, code = self._nvml, getattr(error, "value", None)
            gone = (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED)
            silent = (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND, nvml.NVML_ERROR_NO_PERMISSION)
            raise NvmlError(str(error), lost=code in gone, unsupported=code in silent) from error


class Device:
    """One GPU; made by `Library.device`."""

    def __init__(self, nvml: Any, call: Callable[..., Any], handle: Any) -> None:
        self._nvml = nvml
        self._call = call
        self._handle = handle
        self._events = self._watch_events()

    @property
    def name(self) -> str:
        return _text(self._call(self._nvml.nvmlDeviceGetName, self._handle))

    def read(self) -> Reading:
        """Raises NvmlError where the device does not say how it is; what it never tells is None."""
        nvml = self._nvml
        memory = self._call(nvml.nvmlDeviceGetMemoryInfo, self._handle)
        utilization = self._told(nvml.nvmlDeviceGetUtilizationRates)
        temperature = self._told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)
        power_mw = self._told(nvml.nvmlDeviceGetPowerUsage)
        throttled = self._told(nvml.nvmlDeviceGetCurrentClocksThrottleReasons)
        errors = self._told(
            nvml.nvmlDeviceGetTotalEccErrors, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
        )
        return Reading(
            memory_used_bytes=int(memory.used),
            memory_total_bytes=int(memory.total),
            utilization_percent=None if utilization is None else float(utilization.gpu),
            temperature_celsius=None if temperature is None else float(temperature),
            power_watts=None if power_mw is None else power_mw / 1000,
            throttle_reasons=throttle_reasons(int(throttled or 0)),
            uncorrected_errors=None if errors is None else int(errors),
        )

    def critical_events(self) -> list[int]:
        """Xid codes that the driver reported since the last call; empty where it reports none."""
        codes: list[int] = []
        while self._events is not None and len(codes) < 64:
            try:
                event = self._nvml.nvmlEventSetWait(self._events, 0)
            except self._nvml.NVMLError:
                break  # a timeout: nothing more has happened
            codes.append(int(event.eventData))
        return codes

    def _watch_events(self) -> Any:
        try:
            events = self._nvml.nvmlEventSetCreate()
            self._nvml.nvmlDeviceRegisterEvents(self._handle, self._nvml.nvmlEventTypeXidCriticalError, events)
        except self._nvml.NVMLError:
            return None  # a virtual machine, or a device that reports none
        return events

    def _told(self, function: Callable[..., Any], *arguments: object) -> Any:
        """What the device says; None where it never tells. Raises NvmlError where it fails."""
        try:
            return self._call(function, self._handle, *arguments)
        except NvmlError as error:
            if not error.unsupported:
                raise
            return None


def throttle_reasons(bits: int) -> tuple[str, ...]:
    """Names of the set bits; "unknown" for those without a name here."""
    known = tuple(name for bit, name in _REASONS.items() if bits & bit)
    rest = bits & ~(_IDLE | sum(_REASONS))
    return (*known, "unknown") if rest else known


def _text(value: str | bytes) -> str:
    """The old package gives bytes, the new one text."""
    return value.decode() if isinstance(value, bytes) else value
