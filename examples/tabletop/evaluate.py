"""Closed-loop evaluation of the tabletop policy on unseen seeds, through JPEG, the policy object and the action rules.

    python -m examples.tabletop.evaluate --episodes 200

Writes evaluation.json beside the weights: success overall and by task, with four controls.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.tabletop.expert import act
from examples.tabletop.train import POLICY_FOLDER, build_model, save
from examples.tabletop.world import TASKS, TabletopWorld
from gpu_consumers.policies.contract import Observation
from gpu_consumers.policies.pi0 import PI0Policy
from schemas.action_rules import evaluate_chunk
from schemas.card_files import load_cards
from schemas.cards import CardSet
from schemas.messages import SafetyMode

CARDS = Path(__file__).resolve().parents[2] / "deploy" / "cards"
#: Training worlds come from other seeds.
FIRST_SEED = 1_000_000
EXECUTED_STEPS = 4

#: Gets worlds, returns a chunk (steps, 7) for each.
Actor = Callable[[list[TabletopWorld]], list[NDArray[np.float32]]]


@dataclass
class Result:
    """Successes and episodes by task, and how many chunks the action rules would have refused."""

    wins: dict[str, int]
    episodes: dict[str, int]
    chunks: int = 0
    unsafe: int = 0

    @property
    def success(self) -> float:
        return sum(self.wins.values()) / sum(self.episodes.values())

    def summary(self) -> dict[str, Any]:
        per_task = {task: self.wins[task] / self.episodes[task] for task in TASKS}
        return {"success": self.success, "per_task": per_task, "episodes": sum(self.episodes.values())}


class PolicyActor:
    """Runs the policy as the pipeline does: JPEG, prepare, infer in batches, finish, action rules."""

    def __init__(self, policy: PI0Policy, cards: CardSet, *, blank: bool = False, shuffled: bool = False) -> None:
        self._policy = policy
        self._card = cards.embodiments[0] if len(cards.embodiments) == 1 else cards.embodiment("tabletop_arm")
        self._blank = blank
        self._shuffled = shuffled
        self._rng = np.random.default_rng(1)
        self.chunks = self.unsafe = 0

    def __call__(self, worlds: list[TabletopWorld]) -> list[NDArray[np.float32]]:
        texts = [world.instruction for world in worlds]
        if self._shuffled:
            texts = [str(text) for text in self._rng.permutation(texts)]
        prepared = [self._policy.prepare(self._observe(w, text)) for w, text in zip(worlds, texts, strict=True)]
        chunks = self._policy.finish(self._policy.infer(prepared), len(prepared))
        for world, chunk in zip(worlds, chunks, strict=True):
            self._check(world, chunk)
        return chunks

    def _observe(self, world: TabletopWorld, text: str) -> Observation:
        jpeg, state = world.observe()
        pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        if self._blank:
            pixels = np.full_like(pixels, 128)
        seed = int(self._rng.integers(0, 2**62))
        return Observation(request_id="", instruction=text, images={"base": pixels}, state=state, seed=seed)

    def _check(self, world: TabletopWorld, chunk: NDArray[np.float32]) -> None:
        assert self._card is not None
        mode = SafetyMode.SAFETY_MODE_REJECT
        verdict = evaluate_chunk(chunk, self._card, state=world.state(), previous=None, mode=mode, min_score=0.7)
        self.chunks += 1
        self.unsafe += not verdict.passed


def expert(worlds: list[TabletopWorld]) -> list[NDArray[np.float32]]:
    return [act(world.worlds).astype(np.float32) for world in worlds]


def run(actor: Actor, episodes: int, *, executed: int = EXECUTED_STEPS, batch: int = 16) -> Result:
    """Play episodes in batches; a chunk's first `executed` steps are executed before the next observation."""
    result = Result(dict.fromkeys(TASKS, 0), dict.fromkeys(TASKS, 0))
    for first in range(0, episodes, batch):
        worlds = [TabletopWorld(FIRST_SEED + i) for i in range(first, min(first + batch, episodes))]
        for i, world in enumerate(worlds):
            world.reset(TASKS[(first + i) % len(TASKS)])
        active = list(worlds)
        while active:
            for world, chunk in zip(active, actor(active), strict=True):
                for action in chunk[:executed]:
                    if not (world.success or world.failed):
                        world.step(action)
            active = [world for world in active if not (world.success or world.failed)]
        for world in worlds:
            result.episodes[world.task] += 1
            result.wins[world.task] += world.success
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--control-episodes", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cards = load_cards(CARDS)
    card = cards.deployment("tabletop-pi0")
    assert card is not None
    policy = PI0Policy(card)
    actor = PolicyActor(policy, cards)
    found = run(actor, arguments.episodes).summary()
    found["unsafe_chunks"], found["chunks"] = actor.unsafe, actor.chunks
    found["revision"] = policy.revision
    found["executed_steps"] = EXECUTED_STEPS
    found["first_seed"] = FIRST_SEED
    controls = arguments.control_episodes
    with tempfile.TemporaryDirectory() as folder:
        save(build_model(), Path(folder))
        untrained = PI0Policy(card.model_copy(update={"weights": folder}))
        found["controls"] = {
            "expert": run(expert, controls, executed=1).summary(),
            "untrained model": run(PolicyActor(untrained, cards), controls).summary(),
            "shuffled instruction": run(PolicyActor(policy, cards, shuffled=True), controls).summary(),
            "blank image": run(PolicyActor(policy, cards, blank=True), controls).summary(),
            "all 8 steps executed": run(PolicyActor(policy, cards), controls, executed=8).summary(),
        }
    text = json.dumps(found, indent=1)
    (POLICY_FOLDER / "evaluation.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
