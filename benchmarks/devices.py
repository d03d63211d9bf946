"""Simulated devices: policies that only take the time that a published table gives a GPU for a batch of n.

A simulated device computes nothing. Every table, plot and card that uses one says "simulated".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

#: Label of everything that was measured on one.
SIMULATED = "simulated device"


@dataclass(frozen=True, slots=True)
class SimulatedDevice:
    """Service time of a batch of n: per_item_ms * n + base_ms."""

    name: str
    per_item_ms: float
    base_ms: float
    batch_sizes: tuple[int, ...]
    source: str

    def batch_ms(self, n: int) -> float:
        return self.per_item_ms * n + self.base_ms

    def rate(self, n: int) -> float:
        """Inferences a second at full batches of n."""
        return n / self.batch_ms(n) * 1000

    @property
    def best_rate(self) -> float:
        """Inferences a second at its largest batch."""
        return max(self.rate(n) for n in self.batch_sizes)


def _fit(rates: dict[int, float], chunk: int) -> tuple[float, float]:
    """a, b in ms from observations a second at each batch size, of which a chunk of so many is one inference."""
    sizes = np.array(list(rates), float)
    batch_ms = sizes * chunk / np.array(list(rates.values())) * 1000
    per_item, base = np.polyfit(sizes, batch_ms, 1)
    return float(per_item), float(base)


#: Nothing but the pipeline: the device answers at once.
INSTANT = SimulatedDevice("instant", 0.0, 0.0, (1, 2, 4, 8, 16), "none: a device without service time")

#: Observations a second by batch size, as published; 12 of them are one inference (chunk of 12 actions).
_DB_COGACT_H100 = {1: 165.2, 16: 468.2, 24: 485.5}
_DB_COGACT_A100 = {1: 71.7, 16: 203.1}


def _vla_eval(name: str, rates: dict[int, float], what: str) -> SimulatedDevice:
    per_item_ms, base_ms = _fit(rates, 12)
    source = f"vla-eval docs/tuning-guide.md lines 172-196 at e1ee9ad, DB-CogACT 7B, chunk 12, {what}"
    sizes = tuple(n for n in (1, 2, 4, 8, 16, 24) if n <= max(rates))
    return SimulatedDevice(name, per_item_ms, base_ms, sizes, source)


H100_COGACT = _vla_eval("h100-cogact", _DB_COGACT_H100, "H100")
A100_COGACT = _vla_eval("a100-cogact", _DB_COGACT_A100, "A100")
DEVICES = {device.name: device for device in (INSTANT, H100_COGACT, A100_COGACT)}


def card(device: SimulatedDevice, model: str, cameras: tuple[str, ...]) -> dict[str, Any]:
    """A model card of the deterministic policy that takes this device's time."""
    return {
        "model": model,
        "deployment": model,
        "title": f"Simulated device {device.name}: {device.source}",
        "policy": "deterministic",
        "embodiments": ["tabletop_arm"],
        "cameras": list(cameras),
        "state_dim": 8,
        "action_dim": 7,
        "horizon": 8,
        "batch_sizes": list(device.batch_sizes),
        "policy_config": {
            "service_time_base_ms": device.base_ms,
            "service_time_per_item_ms": device.per_item_ms,
            "amplitude": 0.01,
        },
    }
