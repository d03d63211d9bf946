"""What every policy promises the worker: the contract once for each policy, then what is special to one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_consumers.policies.contract import Observation, Policy, PolicyError
from gpu_consumers.policies.registry import load_policy
from runtime.errors import Fatal
from schemas.card_files import load_cards
from schemas.cards import ModelCard
from tests.cards import model
from tests.openpi_server import chunk_of, openpi_server

CARDS = Path(__file__).resolve().parents[2] / "deploy" / "cards"
#: Batch and single differ by rounding alone.
TOLERANCE = 1e-4


def deterministic_card(**policy_config: object) -> ModelCard:
    return model(state_dim=8, action_dim=7, horizon=8, embodiments=("tabletop_arm",), policy_config=dict(policy_config))


def tabletop_card() -> ModelCard:
    card = load_cards(CARDS).deployment("tabletop-pi0")
    assert card is not None
    return card


@pytest.fixture(scope="module")
def pi0() -> Policy:
    return load_policy(tabletop_card(), "cpu")


@pytest.fixture(scope="module")
def openpi_remote() -> Iterator[Policy]:
    """On a server that looks at everything it is sent, and takes a seed."""
    with openpi_server(chunk_of(8, 7)) as server:
        keys = {"images": {"base": "image"}, "state": {"state": (0, 8)}, "seed": "seed"}
        fields = {"policy": "openpi_remote", "policy_config": {"url": server.url, **keys}}
        yield load_policy(deterministic_card().model_copy(update=fields), "cpu")


@pytest.fixture(scope="module", params=["deterministic", "openpi_remote", "pi0"])
def policy(request: pytest.FixtureRequest) -> Policy:
    if request.param == "deterministic":
        return load_policy(deterministic_card(), "cpu")
    loaded: Policy = request.getfixturevalue("pi0")
    return loaded


def observation(seed: int = 0, instruction: str = "pick up the red block", **images: NDArray[np.uint8]) -> Observation:
    """Another picture and another state for each seed."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    return Observation(
        request_id=f"request-{seed}",
        instruction=instruction,
        images=images or {"base": picture},
        state=rng.random(8, dtype=np.float32),
        seed=seed,
    )


def run(policy: Policy, *observations: Observation) -> list[NDArray[np.float32]]:
    prepared = [policy.prepare(one) for one in observations]
    return policy.finish(policy.infer(prepared), len(prepared))


def test_a_chunk_has_the_cards_shape_and_finite_float32_values(policy: Policy) -> None:
    (chunk,) = run(policy, observation())
    assert chunk.shape == (policy.card.horizon, policy.card.action_dim)
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()


def test_the_same_observation_gives_the_same_chunk(policy: Policy) -> None:
    np.testing.assert_array_equal(run(policy, observation(3))[0], run(policy, observation(3))[0])


def test_another_seed_gives_another_chunk(policy: Policy) -> None:
    one = observation(3)
    other = Observation(
        request_id=one.request_id, instruction=one.instruction, images=one.images, state=one.state, seed=4
    )
    assert not np.array_equal(run(policy, one)[0], run(policy, other)[0])


@pytest.mark.parametrize("size", [2, 5, 16])
def test_a_result_does_not_depend_on_the_batch_that_it_rode_in(policy: Policy, size: int) -> None:
    texts = ["reach the blue block", "push the yellow block to the left"]
    observations = [observation(i, texts[i % 2]) for i in range(size)]
    together = run(policy, *observations)
    assert len(together) == size
    for one, chunk in zip(observations, together, strict=True):
        np.testing.assert_allclose(chunk, run(policy, one)[0], atol=TOLERANCE)


def test_chunks_come_back_in_the_order_of_their_requests(policy: Policy) -> None:
    forward = run(policy, observation(1), observation(2))
    backward = run(policy, observation(2), observation(1))
    np.testing.assert_allclose(forward[0], backward[1], atol=TOLERANCE)
    assert np.abs(forward[0] - forward[1]).max() > TOLERANCE


def test_a_camera_that_is_missing_is_refused_by_name(policy: Policy) -> None:
    wrist = np.zeros((224, 224, 3), np.uint8)
    with pytest.raises(PolicyError, match="base"):
        policy.prepare(observation(wrist=wrist))


def test_the_revision_is_the_same_after_loading_again(policy: Policy) -> None:
    assert load_policy(policy.card, "cpu").revision == policy.revision
    assert len(policy.revision) == 16
    assert int(policy.revision, 16) >= 0


def test_an_unknown_policy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(Fatal, match=r"known are: deterministic, openpi_remote, pi0"):
        load_policy(model(policy="rt9"), "cpu")


@pytest.mark.parametrize("card", [deterministic_card(), tabletop_card()], ids=lambda card: card.policy)
def test_an_unknown_field_of_policy_config_is_refused(card: ModelCard) -> None:
    with pytest.raises(Fatal, match="speed"):
        load_policy(card.model_copy(update={"policy_config": {"speed": 3}}), "cpu")


def test_faults_need_the_cards_consent() -> None:
    (chunk,) = run(load_policy(deterministic_card(), "cpu"), observation(0, "fault nan please"))
    assert np.isfinite(chunk).all()


def test_each_fault_does_what_it_says() -> None:
    faulty = load_policy(deterministic_card(faults=True), "cpu")
    assert np.isnan(run(faulty, observation(0, "a fault nan please"))[0]).any()
    assert np.abs(run(faulty, observation(0, "a fault range please"))[0]).max() > 10
    assert run(faulty, observation(0, "a fault shape please"))[0].shape == (8, 6)
    with pytest.raises(PolicyError):
        run(faulty, observation(0, "a fault refuse please"))
    with pytest.raises(RuntimeError):
        run(faulty, observation(0, "a fault raise please"))


def test_a_faulty_request_leaves_the_rest_of_its_batch_alone() -> None:
    faulty = load_policy(deterministic_card(faults=True), "cpu")
    sound = run(faulty, observation(1))[0]
    np.testing.assert_array_equal(run(faulty, observation(0, "a fault nan please"), observation(1))[1], sound)


def test_pi0_takes_any_picture_size_and_any_words(pi0: Policy) -> None:
    small, wide = np.full((64, 64, 3), 200, np.uint8), np.full((480, 640, 3), 90, np.uint8)
    words = "please fetch me that shiny thing over there " * 10
    for chunk in run(pi0, observation(base=small), observation(instruction=words, base=wide)):
        assert np.isfinite(chunk).all()


@pytest.mark.parametrize("picture", [np.zeros((224, 224), np.uint8), np.zeros((224, 224, 4), np.uint8)])
def test_pi0_refuses_what_is_not_an_rgb_picture(pi0: Policy, picture: NDArray[np.uint8]) -> None:
    with pytest.raises(PolicyError, match="base"):
        pi0.prepare(observation(base=picture))


def test_pi0_refuses_a_state_of_another_length(pi0: Policy) -> None:
    one = observation()
    short = Observation(
        request_id="r", instruction=one.instruction, images=one.images, state=np.zeros(3, np.float32), seed=0
    )
    with pytest.raises(PolicyError, match="state"):
        pi0.prepare(short)


def test_pi0_looks_at_picture_instruction_and_state(pi0: Policy) -> None:
    base = observation(0)
    (chunk,) = run(pi0, base)
    changed = [
        observation(0, "push the blue block to the left"),
        observation(0, base=np.zeros((224, 224, 3), np.uint8)),
        Observation(
            request_id="r",
            instruction=base.instruction,
            images=base.images,
            state=base.state + np.float32(0.3),
            seed=base.seed,
        ),
    ]
    for other in run(pi0, *changed):
        assert np.abs(other - chunk).max() > TOLERANCE


def test_pi0_needs_a_weights_folder() -> None:
    with pytest.raises(Fatal, match="no weights folder"):
        load_policy(tabletop_card().model_copy(update={"weights": ""}), "cpu")


def test_pi0_names_the_files_that_its_folder_lacks(tmp_path: Path) -> None:
    with pytest.raises(Fatal, match=r"lacks config\.json, model\.safetensors, tokenizer\.json"):
        load_policy(tabletop_card().model_copy(update={"weights": str(tmp_path)}), "cpu")


def test_pi0_refuses_weights_that_lack_a_tensor(tmp_path: Path) -> None:
    """transformers would make the missing ones up at random and go on."""
    from safetensors.numpy import load_file, save_file

    card = tabletop_card()
    folder = tmp_path / "policy"
    shutil.copytree(card.weights_path, folder)
    tensors = load_file(folder / "model.safetensors")
    del tensors["action_out_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Fatal, match=r"action_out_proj\.weight"):
        load_policy(card.model_copy(update={"weights": str(folder)}), "cpu")


def test_pi0_refuses_a_card_that_wants_more_than_the_weights_give() -> None:
    with pytest.raises(Fatal, match="12 steps"):
        load_policy(tabletop_card().model_copy(update={"horizon": 12}), "cpu")
