"""The same policy for every server that is compared: same code, weights, device and threads, no pipeline around it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.devices import DEVICES, card
from gpu_consumers.devices import choose_device
from gpu_consumers.policies.contract import Observation
from gpu_consumers.policies.registry import load_policy
from runtime.model_commands import find_card
from runtime.settings import Settings
from schemas.cards import ModelCard

CAMERA = "base"
#: Policies that can be compared by name: the tabletop policy, and simulated devices. Any other is a card's file.
POLICIES = ("tabletop", *DEVICES)
_CARDS = Path(__file__).resolve().parents[2] / "deploy" / "cards"


@dataclass(frozen=True, slots=True)
class Seen:
    """image: uint8 (height, width, 3) RGB. state: (8,), as the tabletop arm's card says."""

    instruction: str
    image: NDArray[np.uint8]
    state: NDArray[np.float32]


class PolicyHost:
    """A policy on the GPU, where there is one, or on `threads` threads of torch."""

    def __init__(self, policy: str, threads: int = 1) -> None:
        self.card = card_of(policy)
        if self.card.weights:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        self.device = choose_device(Settings(_env_file=None, torch_threads=threads), self.card)
        self._policy = load_policy(self.card, self.device)
        self._seeds = count()
        self.infer([self.prepare(Seen("pick up the red block", np.zeros((64, 64, 3), np.uint8), np.zeros(8, "f4")))])

    @property
    def max_batch(self) -> int:
        return self.card.batch_sizes[-1]

    def prepare(self, seen: Seen) -> Any:
        seed = next(self._seeds)
        observation = Observation(
            request_id=str(seed), instruction=seen.instruction, images={CAMERA: seen.image}, state=seen.state, seed=seed
        )
        return self._policy.prepare(observation)

    def infer(self, prepared: Sequence[Any]) -> list[NDArray[np.float32]]:
        """One chunk (horizon, action_dim) for each."""
        return self._policy.finish(self._policy.infer(prepared), len(prepared))


def card_of(policy: str) -> ModelCard:
    """The model card of a name in POLICIES, or of a card's file. Raises Fatal for anything else."""
    if policy in DEVICES:
        return ModelCard.model_validate(card(DEVICES[policy], policy, (CAMERA,)))
    name = f"{policy}-pi0" if policy in POLICIES else policy
    return find_card(Settings(_env_file=None, cards_dir=_CARDS), name)
