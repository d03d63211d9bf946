"""Closed-loop evaluation of the tabletop policy on unseen seeds, through JPEG, the policy object and the action rules.

    python -m examples.tabletop.evaluate --episodes 400

Writes evaluation.json beside the weights (success overall and by task, with controls) and the table of MODEL_CARD.md.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.tabletop.expert import act
from examples.tabletop.train import POLICY_FOLDER, build_model, save
from examples.tabletop.world import COLOURS, TASKS, TabletopWorld, instruction_of
from gpu_consumers.policies.contract import Observation, Policy
from gpu_consumers.policies.pi0.policy import PI0Policy
from runtime.settings import Settings
from schemas.action_rules import evaluate_chunk
from schemas.card_files import load_cards
from schemas.cards import EmbodimentCard, ModelCard
from schemas.messages import SafetyMode

CARDS = Path(__file__).resolve().parents[2] / "deploy" / "cards"
DEPLOYMENT = "tabletop-pi0"
#: Training draws its worlds from one small seed; these are others.
FIRST_SEED = 1_000_000
EXECUTED_STEPS = 4
#: The marks in MODEL_CARD.md between which the table stands.
TABLE_BEGIN, TABLE_END = "<!-- evaluation -->\n", "<!-- /evaluation -->\n"

Pixels = NDArray[np.uint8]
#: Gets worlds, returns a chunk (steps, 7) for each.
Actor = Callable[[list[TabletopWorld]], list[NDArray[np.float32]]]


@dataclass
class Result:
    """Successes and episodes by task."""

    wins: Counter[str] = field(default_factory=Counter)
    episodes: Counter[str] = field(default_factory=Counter)

    @property
    def success(self) -> float:
        return self.wins.total() / self.episodes.total()

    def summary(self) -> dict[str, Any]:
        per_task = {task: round(self.wins[task] / self.episodes[task], 4) for task in TASKS}
        return {"success": round(self.success, 4), "per_task": per_task, "episodes": self.episodes.total()}


class PolicyActor:
    """Runs the policy as the pipeline does: JPEG, prepare, infer in batches, finish, action rules.

    A chunk that the rules refuse is counted and executed all the same. `see` and `say` change what the policy gets.
    """

    def __init__(
        self,
        policy: Policy,
        embodiment: EmbodimentCard,
        *,
        see: Callable[[Pixels], Pixels] = lambda pixels: pixels,
        say: Callable[[TabletopWorld], str] = lambda world: world.instruction,
    ) -> None:
        self._policy = policy
        self._embodiment = embodiment
        self._see = see
        self._say = say
        self._min_score = Settings.model_fields["min_safety_score"].default
        self._rng = np.random.default_rng(1)
        self._previous: dict[TabletopWorld, NDArray[np.float32]] = {}
        self.chunks = 0
        #: Refused chunks by the check that refused them.
        self.refused: Counter[str] = Counter()

    def __call__(self, worlds: list[TabletopWorld]) -> list[NDArray[np.float32]]:
        prepared = [self._policy.prepare(self._observe(world)) for world in worlds]
        chunks = self._policy.finish(self._policy.infer(prepared), len(prepared))
        for world, chunk in zip(worlds, chunks, strict=True):
            self._check(world, chunk)
        return chunks

    def _observe(self, world: TabletopWorld) -> Observation:
        jpeg, state = world.observe()
        pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))
        seed = int(self._rng.integers(0, 2**62))
        return Observation(
            request_id="", instruction=self._say(world), images={"base": self._see(pixels)}, state=state, seed=seed
        )

    def _check(self, world: TabletopWorld, chunk: NDArray[np.float32]) -> None:
        verdict = evaluate_chunk(
            chunk,
            self._embodiment,
            state=world.state(),
            previous=self._previous.get(world),
            mode=SafetyMode.SAFETY_MODE_REJECT,
            min_score=self._min_score,
        )
        self._previous[world] = chunk
        self.chunks += 1
        if not verdict.passed:
            self.refused[verdict.worst_check] += 1


class AnyInstruction:
    """One of all instructions for each world, kept through the episode, whatever is on the table."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(2)
        self._said: dict[TabletopWorld, str] = {}

    def __call__(self, world: TabletopWorld) -> str:
        if world not in self._said:
            task, colour = (int(self._rng.integers(len(names))) for names in (TASKS, COLOURS))
            self._said[world] = instruction_of(task, colour)
        return self._said[world]


def expert(worlds: list[TabletopWorld]) -> list[NDArray[np.float32]]:
    return [act(world.worlds).astype(np.float32) for world in worlds]


def grey(pixels: Pixels) -> Pixels:
    return np.full_like(pixels, 128)


def run(actor: Actor, episodes: int, *, executed: int = EXECUTED_STEPS, batch: int = 16) -> Result:
    """Play episodes in batches; a chunk's first `executed` steps are executed before the next observation."""
    result = Result()
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


def evaluate(card: ModelCard, embodiment: EmbodimentCard, episodes: int, controls: int) -> dict[str, Any]:
    """Everything that evaluation.json holds."""
    policy = PI0Policy(card)
    actor = PolicyActor(policy, embodiment)
    found = _told("policy", run(actor, episodes).summary())
    with tempfile.TemporaryDirectory() as folder:
        save(build_model(), Path(folder))
        untrained = PI0Policy(card.model_copy(update={"weights": folder}))
    deaf = PolicyActor(policy, embodiment, say=AnyInstruction())
    blind = PolicyActor(policy, embodiment, see=grey)
    patient = PolicyActor(policy, embodiment)
    runs: dict[str, tuple[Actor, int, int]] = {
        "all 8 steps executed": (patient, episodes, 8),
        "expert": (expert, controls, 1),
        "untrained model": (PolicyActor(untrained, embodiment), controls, EXECUTED_STEPS),
        "any instruction": (deaf, controls, EXECUTED_STEPS),
        "grey image": (blind, controls, EXECUTED_STEPS),
    }
    return {
        **found,
        "revision": policy.revision,
        "executed_steps": EXECUTED_STEPS,
        "first_seed": FIRST_SEED,
        "chunks": actor.chunks + patient.chunks,
        "refused_chunks": dict(actor.refused + patient.refused),
        "controls": {
            name: _told(name, run(player, count, executed=executed).summary())
            for name, (player, count, executed) in runs.items()
        },
    }


def table(found: Mapping[str, Any]) -> str:
    """Success in percent by task, as a Markdown table."""
    lines = [f"| | {' | '.join(TASKS)} | all | episodes |", f"|{'---|' * (len(TASKS) + 3)}"]
    for name, row in {"**policy, 4 of 8 steps executed**": found, **found["controls"]}.items():
        shares = [*(row["per_task"][task] for task in TASKS), row["success"]]
        lines.append(f"| {name} | {' | '.join(f'{share:.1%}' for share in shares)} | {row['episodes']} |")
    refused = sum(found["refused_chunks"].values())
    lines += ["", f"The action rules refused {refused} of {found['chunks']} chunks. Revision `{found['revision']}`."]
    return "\n".join(lines) + "\n"


def _told(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    print(f"{name}: {summary['success']:.1%} of {summary['episodes']}", flush=True)
    return summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--control-episodes", type=int, default=200)
    parser.add_argument("--weights", type=Path, default=POLICY_FOLDER, help="folder to evaluate and to write to")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cards = load_cards(CARDS)
    card = cards.deployment(DEPLOYMENT)
    embodiment = cards.embodiment(card.embodiments[0]) if card is not None else None
    if card is None or embodiment is None:
        parser.error(f"{CARDS} has no deployment {DEPLOYMENT}")
    card = card.model_copy(update={"weights": str(arguments.weights.resolve())})
    found = evaluate(card, embodiment, arguments.episodes, arguments.control_episodes)
    (arguments.weights / "evaluation.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    model_card = arguments.weights / "MODEL_CARD.md"
    if model_card.is_file():
        before, _, rest = model_card.read_text(encoding="utf-8").partition(TABLE_BEGIN)
        after = rest.partition(TABLE_END)[2]
        model_card.write_text(before + TABLE_BEGIN + table(found) + TABLE_END + after, encoding="utf-8")


if __name__ == "__main__":
    main()
