"""Runs every batch size once before the first request: kernels are compiled, memory is claimed, costs are known."""

from __future__ import annotations

import logging
import time
from typing import Any

import numpy as np

from gpu_consumers.batching import BatchQueue
from gpu_consumers.cost import CostModel
from gpu_consumers.devices import is_out_of_memory, release_memory
from gpu_consumers.policies.contract import Observation, Policy
from runtime.errors import Fatal

log = logging.getLogger(__name__)

_SIDE = 224


def warm_up(policy: Policy, queue: BatchQueue[Any], cost: CostModel) -> None:
    """Twice for each size, of which the second is measured. Raises Fatal for a policy that cannot run at all."""
    for size in policy.card.batch_sizes:
        try:
            for _ in range(2):
                batch = [policy.prepare(blank(policy, seed)) for seed in range(size)]
                started = time.perf_counter()
                raw = policy.infer(batch)
                took_s = time.perf_counter() - started
                policy.finish(raw, size)
            cost.observe(size, took_s)
        except Exception as error:
            if is_out_of_memory(error) and size > min(policy.card.batch_sizes):
                queue.limit_batch(size - 1)
                release_memory()
                log.warning("no memory for a batch of %d: at most %d", size, queue.max_batch)
                return
            raise Fatal(f"deployment {policy.card.deployment} cannot run a batch of {size}: {error!r}") from error


def blank(policy: Policy, seed: int = 0) -> Observation:
    """An observation that every policy takes: black images, a state of zeros."""
    card = policy.card
    return Observation(
        request_id="warm-up",
        instruction="hold the arm still",
        images={camera: np.zeros((_SIDE, _SIDE, 3), np.uint8) for camera in card.cameras},
        state=np.zeros(card.state_dim, np.float32),
        seed=seed,
    )
