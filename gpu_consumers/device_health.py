"""When a GPU is sick: pure rules over what NVML says of it, one look after the other."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_consumers.nvml import NvmlError, Reading

#: Looks in a row that the library did not answer, after which the device is not trusted any more.
SILENT_LOOKS = 3
#: Xid codes that are about the device or its link, not about a program (NVIDIA, "XID Errors"): 13, 31, 43 and 45 are
#: what a faulty program causes and the worker finds out by itself.
DEVICE_XIDS = {
    48: "double bit ECC error",
    61: "internal micro-controller breakpoint",
    62: "internal micro-controller halt",
    64: "ECC row remapping failed",
    74: "NVLink error",
    79: "the GPU has fallen off the bus",
    94: "contained ECC error",
    95: "uncontained ECC error",
    119: "GSP timeout",
    120: "GSP error",
    140: "unrecovered ECC error",
}


class DeviceHealth:
    """Remembers what the device said first: only errors that come on top of those are its sickness now."""

    def __init__(self) -> None:
        self._errors_before: int | None = None
        self._silent = 0

    def silence(self, error: NvmlError) -> str:
        """The fault, if not answering has become one; empty while it may pass."""
        self._silent += 1
        if error.lost:
            return f"the driver has lost it: {error}"
        return f"NVML failed {self._silent} times in a row: {error}" if self._silent >= SILENT_LOOKS else ""

    def judge(self, reading: Reading, xids: Sequence[int]) -> str:
        """The fault that a look shows; empty for a healthy device. Heat and throttling slow it down and are none."""
        self._silent = 0
        for xid in xids:
            if xid in DEVICE_XIDS:
                return f"Xid {xid}: {DEVICE_XIDS[xid]}"
        errors = reading.uncorrected_errors
        if errors is None:
            return ""
        before, self._errors_before = self._errors_before, errors
        # Fewer than before: the counters began anew.
        return f"{errors - before} uncorrected memory errors" if before is not None and errors > before else ""
