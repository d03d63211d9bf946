"""PI0: the numbers of lerobot's own implementation, the layouts of its checkpoints, and what its cards may ask for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from gpu_consumers.policies.contract import PolicyError
from gpu_consumers.policies.pi0.checkpoint import Names, read_config
from gpu_consumers.policies.pi0.compilation import compile_parts
from gpu_consumers.policies.pi0.policy import PI0Policy
from gpu_consumers.policies.registry import load_policy
from gpu_consumers.policies.scaling import by_mean, by_range, of_card
from gpu_consumers.policies.weights import WeightFiles
from runtime.errors import Fatal
from tests import tiny_pi0
from tests.unit.policy_case import observation, pi0_card, pi0_observations, run, tabletop_card

#: What lerobot produced; see its `about`. The file holds six decimals.
LEROBOT = json.loads((Path(__file__).resolve().parents[1] / "pi0_parity.json").read_text(encoding="utf-8"))
PIXELS, ACTIONS = 2e-6, 1e-4
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pi0") / "weights"
    tiny_pi0.write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def pi0(folder: Path) -> PI0Policy:
    return PI0Policy(pi0_card(folder))


def test_actions_are_those_of_lerobots_implementation(pi0: PI0Policy) -> None:
    """One of the observations lacks the optional camera; both ride in one batch."""
    prepared = [
        dataclasses.replace(pi0.prepare(one), noise=torch.from_numpy(case.noise))
        for one, case in zip(pi0_observations(), tiny_pi0.cases(), strict=True)
    ]
    chunks = pi0.finish(pi0.infer(prepared), len(prepared))
    pixels = actions = 0.0
    for case, item, chunk in zip(LEROBOT["cases"], prepared, chunks, strict=True):
        words = [token for token in case["tokens"] if token]
        image_tokens = 4 * int(item.present.sum())
        assert item.tokens[image_tokens : image_tokens + len(words)].tolist() == words
        assert int(item.mask.sum()) == image_tokens + len(words)
        pixels = max(pixels, float(np.abs(item.images[0].flatten()[::97].numpy() - case["pixels"]).max()))
        actions = max(actions, float(np.abs(chunk - np.asarray(case["actions"])).max()))
    print(f"\npi0 against lerobot, largest differences: pixels {pixels:.1e}, actions {actions:.1e} (of up to 5)")
    assert pixels < PIXELS
    assert actions < ACTIONS


def test_the_same_weights_in_transformers_layout_give_the_same_actions(
    pi0: PI0Policy, folder: Path, tmp_path: Path
) -> None:
    """The other folder is written by transformers itself, from a model that it loaded from lerobot's file."""
    from transformers import PI0ForConditionalGeneration

    config, _ = read_config(WeightFiles(pi0.card))
    loader: Any = PI0ForConditionalGeneration
    native, report = loader.from_pretrained(
        folder, config=config, dtype=torch.float32, local_files_only=True, output_loading_info=True
    )
    assert not report["missing_keys"]
    native.save_pretrained(tmp_path / "native")
    (tmp_path / "native" / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    stored = load_file(folder / "policy_preprocessor_step_1_normalizer_processor.safetensors")
    normalisation = {
        f"{kind}_{key}": stored[f"{feature}.{key}"].tolist()
        for kind, feature in (("state", "observation.state"), ("action", "action"))
        for key in ("mean", "std")
    }
    how = {"images": "pad", "text": "paligemma", "max_text_tokens": tiny_pi0.TEXT_TOKENS}
    card = pi0_card(tmp_path / "native", policy_config=how, normalisation=normalisation)
    for ours, theirs in zip(run(pi0, *pi0_observations()), run(PI0Policy(card), *pi0_observations()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("statistics", ["processors", "buffers"])
@pytest.mark.parametrize("prefix", ["", "model."])
def test_every_age_of_lerobots_layout_gives_the_same_actions(
    pi0: PI0Policy, tmp_path: Path, prefix: str, statistics: Any
) -> None:
    tiny_pi0.write_checkpoint(tmp_path / "weights", prefix=prefix, statistics=statistics)
    other = PI0Policy(pi0_card(tmp_path / "weights"))
    for ours, theirs in zip(run(pi0, *pi0_observations()), run(other, *pi0_observations()), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("stored", "place"),
    [
        ("model.paligemma_with_expert.paligemma.language_model.model.layers.3.mlp.up_proj.weight",
         "model.vlm.language_model.layers.3.mlp.up_proj.weight"),
        ("paligemma_with_expert.paligemma.vision_tower.vision_model.post_layernorm.bias",
         "model.vlm.vision_tower.post_layernorm.bias"),
        ("paligemma_with_expert.paligemma.model.vision_tower.post_layernorm.bias",
         "model.vlm.vision_tower.post_layernorm.bias"),
        ("model.paligemma_with_expert.gemma_expert.model.norm.weight", "model.dit.norm.weight"),
        ("model.paligemma_with_expert.gemma_expert.lm_head.weight", None),
        ("paligemma_with_expert.paligemma.lm_head.weight", "model.vlm.language_model.embed_tokens.weight"),
        ("model.state_proj.bias", "embed_action_time.state_proj.bias"),
        ("embed_action_time.state_proj.bias", "embed_action_time.state_proj.bias"),
        ("model.vlm.language_model.norm.weight", "model.vlm.language_model.norm.weight"),
        ("normalize_inputs.buffer_observation_state.mean", None),
        ("unnormalize_outputs.buffer_action.std", None),
    ],
)  # fmt: skip
def test_a_stored_tensor_finds_its_place(stored: str, place: str | None) -> None:
    assert Names([stored])(stored) == place


def test_a_head_beside_the_embedding_that_it_is_tied_to_is_left_out() -> None:
    head = "model.paligemma_with_expert.paligemma.lm_head.weight"
    embedding = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
    names = Names([head, embedding])
    assert names(head) is None
    assert names(embedding) == "model.vlm.language_model.embed_tokens.weight"


@pytest.mark.parametrize(("mode", "low", "high"), [("QUANTILES", -2, 2.5), ("MIN_MAX", -3, 3)])
def test_statistics_are_read_as_the_folder_says(
    pi0: PI0Policy, tmp_path: Path, mode: str, low: float, high: float
) -> None:
    tiny_pi0.write_checkpoint(tmp_path / "weights", mode=mode)
    other = PI0Policy(pi0_card(tmp_path / "weights"))
    scaled = np.random.default_rng(0).random((1, tiny_pi0.HORIZON, 8), dtype=np.float32) * 2 - 1
    std = np.linspace(0.2, 2, tiny_pi0.ACTION_DIM)
    mean = np.linspace(-0.5, 0.5, tiny_pi0.ACTION_DIM)
    wanted = mean + std * (low + (scaled[0, :, :4] + 1) / 2 * (high - low))
    np.testing.assert_allclose(other.finish(torch.from_numpy(scaled), 1)[0], wanted, rtol=1e-5, atol=1e-6)


def test_the_cards_normalisation_goes_before_the_folders(folder: Path) -> None:
    quantiles = {"action_q01": [0.0] * 4, "action_q99": [2.0] * 4}
    policy = PI0Policy(pi0_card(folder, normalisation=quantiles))
    np.testing.assert_allclose(policy.finish(torch.full((1, tiny_pi0.HORIZON, 8), -0.5), 1)[0], 0.5)


def test_statistics_of_another_length_are_refused(folder: Path) -> None:
    with pytest.raises(Fatal, match="the folder's state statistics have 5 values, the card has 4"):
        load_policy(pi0_card(folder, state_dim=4), "cpu")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"action_mean": [0.0] * 3, "action_std": [1.0] * 3}, "4 means"),
        ({"action_mean": [0.0] * 4, "action_std": [0.0] * 4}, "positive"),
        ({"action_mean": [0.0] * 4, "action_q99": [0.0] * 4}, "not both"),
        ({"action_q01": [0.0] * 4}, "different lengths"),
        ({"action_q01": [1.0] * 4, "action_q99": [0.0] * 4}, "below zero"),
    ],
)
def test_a_cards_normalisation_that_cannot_be_is_refused(folder: Path, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(Fatal, match=reason):
        load_policy(pi0_card(folder, normalisation=given), "cpu")


def test_scaling_there_and_back_is_the_identity() -> None:
    values = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    for scaling in (by_mean([1, 2, 3], [0.5, 1, 2]), by_range([-1, 0, 1], [2, 3, 5])):
        np.testing.assert_allclose(scaling.physical(scaling.scaled(values)), values, rtol=1e-5, atol=1e-6)
    assert of_card(3, mean=(), std=(), q01=(), q99=()) is None


def test_a_dimension_that_never_moved_stays_where_it_was() -> None:
    still = by_mean([3.0], [0.0])
    assert still.scaled(np.array([3.0], np.float32)).tolist() == [0.0]
    assert still.physical(np.array([7.0], np.float32)).tolist() == [3.0]


def test_an_absent_optional_camera_is_masked_and_not_a_black_picture(pi0: PI0Policy) -> None:
    base, left, right = tiny_pi0.CAMERAS
    picture, black = np.full((28, 28, 3), 180, np.uint8), np.zeros((28, 28, 3), np.uint8)
    (absent,) = run(pi0, observation(pi0.card, images={base: picture, left: picture}))
    (dark,) = run(pi0, observation(pi0.card, images={base: picture, left: picture, right: black}))
    two = PI0Policy(pi0.card.model_copy(update={"optional_cameras": ()}))
    np.testing.assert_allclose(
        run(two, observation(two.card, images={base: picture, left: picture}))[0], absent, atol=1e-4
    )
    assert np.abs(dark - absent).max() > TOLERANCE


@pytest.mark.parametrize("count", [1, 3])
def test_one_to_three_cameras_are_served(folder: Path, count: int) -> None:
    policy = PI0Policy(pi0_card(folder, cameras=tiny_pi0.CAMERAS[:count], optional_cameras=()))
    assert np.isfinite(run(policy, observation(policy.card))[0]).all()


def test_a_state_of_another_length_is_refused(pi0: PI0Policy) -> None:
    short = dataclasses.replace(observation(pi0.card), state=np.zeros(3, np.float32))
    with pytest.raises(PolicyError, match="state"):
        pi0.prepare(short)


def test_words_beyond_the_last_token_are_left_out() -> None:
    policy = PI0Policy(tabletop_card())
    words = "please fetch me that shiny thing over there " * 10
    assert np.isfinite(run(policy, observation(policy.card, 0, words))[0]).all()


def test_picture_instruction_and_state_matter() -> None:
    policy = PI0Policy(tabletop_card())
    base = observation(policy.card, 0)
    (chunk,) = run(policy, base)
    changed = [
        observation(policy.card, 0, "push the blue block to the left"),
        observation(policy.card, 0, images={"base": np.zeros((9, 9, 3), np.uint8)}),
        dataclasses.replace(base, state=base.state + np.float32(0.3)),
    ]
    for other in run(policy, *changed):
        assert np.abs(other - chunk).max() > TOLERANCE


def test_weights_that_lack_a_tensor_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny_pi0.write_checkpoint(tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    del tensors["action_out_proj.weight"]
    tensors["lora.a"] = tensors["state_proj.bias"]
    save_file(tensors, tmp_path / "weights" / "model.safetensors")
    with pytest.raises(Fatal, match=r"lacks action_out_proj\.weight"):
        load_policy(pi0_card(tmp_path / "weights"), "cpu")


def test_weights_of_more_than_the_model_are_refused(folder: Path, tmp_path: Path) -> None:
    tiny_pi0.write_checkpoint(tmp_path / "weights")
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "lora.a": tensors["state_proj.bias"]}, tmp_path / "weights" / "model.safetensors")
    with pytest.raises(Fatal, match=r"does not know: lora\.a"):
        load_policy(pi0_card(tmp_path / "weights"), "cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"type": "pi05"}, "'pi05', not pi0"),
        ({"use_relative_actions": True}, "use_relative_actions"),
        ({"image_resolution": [224, 224]}, "28 x 28"),
        ({"chunk_size": 4}, "the card wants 6 steps"),
        ({"max_action_dim": 16}, "does not fit its config.json in action_out_proj.bias"),
    ],
)
def test_a_folder_that_cannot_be_served_is_refused(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    tiny_pi0.write_checkpoint(tmp_path / "weights")
    path = tmp_path / "weights" / "config.json"
    path.write_text(json.dumps({**tiny_pi0.config(), **change}))
    with pytest.raises(Fatal, match=reason):
        load_policy(pi0_card(tmp_path / "weights"), "cpu")


def test_compiled_parts_give_the_same_actions(folder: Path, pi0: PI0Policy) -> None:
    """Traced without a code generator: what may differ on a GPU is its rounding."""
    traced = PI0Policy(pi0_card(folder))
    compile_parts(traced.model, backend="eager")
    for ours, theirs in zip(run(pi0, *pi0_observations()), run(traced, *pi0_observations()), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
