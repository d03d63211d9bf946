"""A policy without a network: actions are a function of state, instruction and seed. For tests and for protocol checks.

It can play a device of known speed, and a faulty one where its card says `faults: true`.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from gpu_consumers.policies.contract import AS_THE_CARD_SAYS, LoadOptions, Observation, PolicyError
from schemas.cards import ModelCard

#: How many times as long a batch with "fault slow" takes.
_SLOW = 10


class DeterministicConfig(BaseModel):
    """The card's `policy_config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Service time of a batch of n: base + n * per item. Zero: as fast as it goes.
    service_time_base_ms: float = Field(default=0.0, ge=0)
    service_time_per_item_ms: float = Field(default=0.0, ge=0)
    #: Largest magnitude of an action value; the last dimension is 0 or 1.
    amplitude: float = Field(default=0.01, gt=0)
    #: Obey "fault nan", "fault raise", "fault refuse", "fault range", "fault shape", "fault hang" and "fault slow"
    #: (its batch takes ten times as long) in instructions.
    faults: bool = False


@dataclass(frozen=True, slots=True)
class _Prepared:
    chunk: NDArray[np.float32]
    fault: str


class DeterministicPolicy:
    """Chunks are small random walks around zero, the same for the same observation whatever the batch."""

    def __init__(self, card: ModelCard, device: str = "cpu", options: LoadOptions = AS_THE_CARD_SAYS) -> None:
        self.card = card
        self.device = "cpu"
        self._config = DeterministicConfig.model_validate(card.policy_config)
        self.revision = hashlib.sha256(repr((card.deployment, self._config)).encode()).hexdigest()[:16]

    def prepare(self, observation: Observation) -> _Prepared:
        missing = [camera for camera in self.card.cameras if camera not in observation.images]
        if missing:
            raise PolicyError(f"no image of camera {', '.join(missing)}")
        fault = ""
        if self._config.faults:
            fault, *_ = observation.instruction.partition("fault ")[2].split() or [""]
        if fault == "refuse":
            raise PolicyError("asked to refuse")
        return _Prepared(self._chunk(observation), fault)

    def infer(self, batch: Sequence[_Prepared]) -> list[NDArray[np.float32]]:
        pace = _SLOW if any(item.fault == "slow" for item in batch) else 1
        service_ms = self._config.service_time_base_ms + len(batch) * self._config.service_time_per_item_ms
        time.sleep(pace * service_ms / 1000)
        return [self._with_fault(item) for item in batch]

    def finish(self, raw: list[NDArray[np.float32]], size: int) -> list[NDArray[np.float32]]:
        return raw[:size]

    def _chunk(self, observation: Observation) -> NDArray[np.float32]:
        text = f"{observation.instruction}\x1f{observation.state.tobytes().hex()}\x1f{observation.seed}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        rng = np.random.default_rng(seed)
        shape = (self.card.horizon, self.card.action_dim)
        chunk = rng.uniform(-1, 1, shape[1]) * self._config.amplitude * np.linspace(0.5, 1, shape[0])[:, None]
        chunk[:, -1] = rng.integers(0, 2)
        return chunk.astype(np.float32)

    def _with_fault(self, item: _Prepared) -> NDArray[np.float32]:
        if item.fault == "raise":
            raise RuntimeError("asked to raise")
        if item.fault == "hang":
            time.sleep(3600)
        if item.fault == "nan":
            return np.full_like(item.chunk, np.nan)
        if item.fault == "range":
            return item.chunk + np.float32(100)
        if item.fault == "shape":
            return item.chunk[:, :-1]
        return item.chunk
