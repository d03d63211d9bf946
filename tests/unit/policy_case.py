"""Cards, observations and runs for the tests of policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gpu_consumers.policies.contract import Observation, Policy
from schemas.card_files import load_cards
from schemas.cards import ModelCard
from tests import tiny_openvla, tiny_pi0
from tests.cards import model

CARDS = Path(__file__).resolve().parents[2] / "deploy" / "cards"


def deterministic_card(**policy_config: object) -> ModelCard:
    return model(state_dim=8, action_dim=7, horizon=8, policy_config=dict(policy_config))


def tabletop_card() -> ModelCard:
    card = load_cards(CARDS).deployment("tabletop-pi0")
    assert card is not None
    return card


def pi0_card(folder: Path, **changes: object) -> ModelCard:
    """For the checkpoint that tiny_pi0 writes into a folder."""
    fields: dict[str, object] = {
        "deployment": "tiny-pi0",
        "policy": "pi0",
        "weights": folder.name,
        "path": folder.parent / "card.yaml",
        "cameras": tiny_pi0.CAMERAS[:2],
        "optional_cameras": tiny_pi0.CAMERAS[2:],
        "state_dim": tiny_pi0.STATE_DIM,
        "action_dim": tiny_pi0.ACTION_DIM,
        "horizon": tiny_pi0.HORIZON,
        "policy_config": {"max_text_tokens": tiny_pi0.TEXT_TOKENS},
    }
    return model(**{**fields, **changes})


def openvla_card(folder: Path, **changes: object) -> ModelCard:
    """For the checkpoint that tiny_openvla writes into a folder."""
    fields: dict[str, object] = {
        "deployment": "tiny-openvla",
        "policy": "openvla",
        "weights": folder.name,
        "path": folder.parent / "card.yaml",
        "state_dim": 8,
        "action_dim": 7,
        "horizon": 1,
        "policy_config": {"unnorm_key": "bridge_orig"},
    }
    return model(**{**fields, **changes})


def write_all(folder: Path) -> dict[str, ModelCard]:
    """A card with weights for every policy and layout, by the names that the contract suite shows."""
    tiny_pi0.write_checkpoint(folder / "lerobot")
    tiny_openvla.write_checkpoint(folder / "openvla")
    return {
        "deterministic": deterministic_card(),
        "pi0": tabletop_card(),
        "pi0-lerobot": pi0_card(folder / "lerobot"),
        "openvla": openvla_card(folder / "openvla"),
    }


def pi0_observations() -> list[Observation]:
    """The cases that PI0 was compared on."""
    return [
        Observation(request_id="r", instruction=case.instruction, images=case.images, state=case.state, seed=index)
        for index, case in enumerate(tiny_pi0.cases())
    ]


def openvla_observations() -> list[Observation]:
    """The cases that OpenVLA was compared on."""
    state = np.zeros(8, np.float32)
    return [
        Observation(request_id="r", instruction=text, images={"base": picture}, state=state, seed=0)
        for text, picture in tiny_openvla.cases()
    ]


def observation(
    card: ModelCard,
    seed: int = 0,
    instruction: str = "pick up the red block",
    images: Mapping[str, NDArray[np.uint8]] | None = None,
) -> Observation:
    """Another picture and another state for each seed. The pictures are coarse, so that they differ at any size."""
    rng = np.random.default_rng(seed)
    tiles = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    picture = tiles.repeat(56, axis=0).repeat(56, axis=1)
    return Observation(
        request_id=f"request-{seed}",
        instruction=instruction,
        images=images or dict.fromkeys(card.cameras, picture),
        state=rng.random(card.state_dim, dtype=np.float32),
        seed=seed,
    )


def reseeded(one: Observation, seed: int) -> Observation:
    return dataclasses.replace(one, seed=seed)


def run(policy: Policy, *observations: Observation) -> list[NDArray[np.float32]]:
    prepared = [policy.prepare(one) for one in observations]
    return policy.finish(policy.infer(prepared), len(prepared))
