"""OpenVLA: the numbers of the original implementation, and what is special about its folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_consumers.policies.contract import PolicyError
from gpu_consumers.policies.openvla.actions import ActionDecoder
from gpu_consumers.policies.openvla.checkpoint import ActionStatistics, Preprocessing
from gpu_consumers.policies.openvla.images import PictureTransform
from gpu_consumers.policies.openvla.policy import OpenVLAPolicy
from gpu_consumers.policies.registry import load_policy
from runtime.errors import Fatal
from tests import tiny_openvla
from tests.unit.policy_case import observation, openvla_card, openvla_observations, run

#: What the original produced; see its `about`.
ORIGINAL = json.loads((Path(__file__).resolve().parents[1] / "openvla_parity.json").read_text(encoding="utf-8"))
#: The file holds six decimals of pixels and patches, five of logits.
PIXELS, PATCHES, LOGITS, ACTIONS = 1e-6, 2e-5, 1e-4, 1e-7


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("openvla") / "weights"
    tiny_openvla.write_checkpoint(folder)
    return folder


@pytest.fixture(scope="module")
def policy(folder: Path) -> OpenVLAPolicy:
    return OpenVLAPolicy(openvla_card(folder))


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder of one's own to change: links, so that only what changes is written."""
    (tmp_path / "weights").mkdir()
    for path in folder.iterdir():
        (tmp_path / "weights" / path.name).symlink_to(path)
    yield tmp_path / "weights"
    shutil.rmtree(tmp_path / "weights")


def rewrite(path: Path, **changes: Any) -> None:
    content = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.unlink()
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.mark.parametrize("key", ["bridge_orig", "fractal"])
def test_actions_are_those_of_the_original_implementation(folder: Path, key: str) -> None:
    policy = OpenVLAPolicy(openvla_card(folder, policy_config={"unnorm_key": key}))
    prepared = [policy.prepare(one) for one in openvla_observations()]
    logits = policy.logits(prepared)
    chunks = policy.finish(policy.infer(prepared), len(prepared))
    sampled = slice(tiny_openvla.ACTION_TOKENS.start, tiny_openvla.ACTION_TOKENS.stop, 24)
    worst: dict[str, float] = {}
    for case, item, scores, chunk in zip(ORIGINAL["cases"], prepared, logits, chunks, strict=True):
        assert item.tokens == case["prompt_tokens"]
        assert scores.argmax(dim=-1).tolist() == case["tokens"]
        found = {
            "pixels": (item.picture[:, ::19, ::17].flatten(), case["pixels"]),
            "logits": (scores[:, sampled], case["logits"]),
            "actions": (torch.from_numpy(chunk[0]), case["actions"][key]),
        }
        for name, (ours, theirs) in found.items():
            worst[name] = max(worst.get(name, 0.0), float((ours.double() - torch.tensor(theirs).double()).abs().max()))
    print(f"\nopenvla against the original ({key}), largest differences: {worst}; all tokens equal")
    assert worst["pixels"] < PIXELS
    assert worst["logits"] < LOGITS
    assert worst["actions"] < ACTIONS


def test_a_batch_of_different_prompts_gives_the_tokens_of_each_alone(policy: OpenVLAPolicy) -> None:
    prepared = [policy.prepare(one) for one in openvla_observations()]
    assert len({len(item.tokens) for item in prepared}) == len(prepared)
    together = policy.infer(prepared)
    for item, tokens in zip(prepared, together, strict=True):
        np.testing.assert_array_equal(policy.infer([item])[0], tokens)


def test_picture_and_instruction_matter_and_state_does_not(policy: OpenVLAPolicy) -> None:
    base = observation(policy.card, 0)
    (chunk,) = run(policy, base)
    other_text = observation(policy.card, 0, "push the blue block to the left")
    other_picture = observation(policy.card, 0, images={"base": np.zeros((9, 9, 3), np.uint8)})
    assert not np.array_equal(run(policy, other_text)[0], chunk)
    assert not np.array_equal(run(policy, other_picture)[0], chunk)


def test_an_instruction_without_end_is_refused(policy: OpenVLAPolicy) -> None:
    with pytest.raises(PolicyError, match="shorten it"):
        policy.prepare(observation(policy.card, 0, "go on " * 200))


def test_braces_in_an_instruction_are_words(policy: OpenVLAPolicy) -> None:
    assert np.isfinite(run(policy, observation(policy.card, 0, "pick {0} {instruction} {"))[0]).all()


def test_statistics_of_a_fine_tune_go_before_those_of_its_base(copied: Path) -> None:
    action = {"q01": [0.0] * 7, "q99": [2.0] * 7, "mask": [True] * 7}
    (copied / "dataset_statistics.json").write_text(json.dumps({"libero_spatial": {"action": action}}))
    tuned = OpenVLAPolicy(openvla_card(copied, policy_config={}))
    base = OpenVLAPolicy(openvla_card(copied.parent / "weights", policy_config={"unnorm_key": "libero_spatial"}))
    chunk = run(tuned, observation(tuned.card))[0]
    assert (chunk >= 0).all()
    np.testing.assert_array_equal(chunk, run(base, observation(base.card))[0])


@pytest.mark.parametrize("key", [None, "droid"])
def test_a_data_set_that_the_checkpoint_does_not_know_is_answered_with_those_it_knows(
    folder: Path, key: str | None
) -> None:
    with pytest.raises(Fatal, match=r"unnorm_key.*bridge_orig, fractal"):
        load_policy(openvla_card(folder, policy_config={"unnorm_key": key}), "cpu")


def test_the_data_set_of_the_cards_pairings_is_used(folder: Path) -> None:
    paired = OpenVLAPolicy(openvla_card(folder, policy_config={}, pairings={"test_arm": {"unnorm_key": "fractal"}}))
    named = OpenVLAPolicy(openvla_card(folder, policy_config={"unnorm_key": "fractal"}))
    np.testing.assert_array_equal(run(paired, observation(paired.card))[0], run(named, observation(named.card))[0])
    two = {"test_arm": {"unnorm_key": "fractal"}, "other_arm": {"unnorm_key": "bridge_orig"}}
    with pytest.raises(Fatal, match="bridge_orig, fractal; a deployment has one"):
        load_policy(openvla_card(folder, policy_config={}, pairings=two, embodiments=("test_arm", "other_arm")), "cpu")


@pytest.mark.parametrize("change", [{"horizon": 8}, {"action_dim": 6}, {"cameras": ("base", "wrist")}])
def test_a_card_that_wants_what_openvla_does_not_give_is_refused(folder: Path, change: dict[str, Any]) -> None:
    with pytest.raises(Fatal, match="one step of 7 actions from one camera"):
        load_policy(openvla_card(folder, **change), "cpu")


def test_another_model_is_refused(copied: Path) -> None:
    rewrite(copied / "config.json", model_type="llava")
    with pytest.raises(Fatal, match="'llava' on 'llama', not openvla"):
        load_policy(openvla_card(copied), "cpu")


def test_a_missing_shard_is_named(copied: Path) -> None:
    (copied / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(Fatal, match=r"lacks model-00002-of-00002\.safetensors"):
        load_policy(openvla_card(copied), "cpu")


def test_a_shard_outside_the_folder_is_refused(copied: Path) -> None:
    rewrite(copied / "model.safetensors.index.json", weight_map={"a": "../elsewhere.safetensors"})
    with pytest.raises(Fatal, match="names no shards of this folder"):
        load_policy(openvla_card(copied), "cpu")


def test_tensors_that_do_not_fit_are_named(copied: Path) -> None:
    rewrite(copied / "model.safetensors.index.json", weight_map={"a": "model-00001-of-00002.safetensors"})
    with pytest.raises(Fatal, match=r"lacks language_model\.lm_head\.weight.* and \d+ more"):
        load_policy(openvla_card(copied), "cpu")


def test_a_file_that_was_cut_is_refused(copied: Path) -> None:
    shard = copied / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Fatal, match="not a whole safetensors file"):
        load_policy(openvla_card(copied), "cpu")


@given(st.lists(st.integers(0, 32063), min_size=7, max_size=7))
def test_any_token_gives_an_action_within_the_quantiles(tokens: list[int]) -> None:
    low, high = (-0.5,) * 6 + (0.0,), (2.0,) * 6 + (1.0,)
    decode = ActionDecoder(ActionStatistics(low, high, (True,) * 6 + (False,)), vocabulary=32000, bins=256)
    actions = decode(np.asarray(tokens))
    assert (actions[:6] >= -0.5).all()
    assert (actions[:6] <= 2.0).all()
    assert -1 <= actions[6] <= 1


def test_tokens_descend_while_actions_ascend() -> None:
    statistics = ActionStatistics((-1.0,), (1.0,), (True,))
    decode = ActionDecoder(statistics, vocabulary=32000, bins=256)
    tokens = np.arange(31999, 31744, -1)[:, None]
    assert (np.diff(decode(tokens)[:, 0]) > 0).all()
    assert decode(tokens).shape == (255, 1)


@pytest.mark.parametrize("strategy", ["resize-naive", "resize-crop", "letterbox"])
def test_each_resize_strategy_gives_squares_for_both_towers(strategy: str) -> None:
    how = Preprocessing(
        image_resize_strategy=strategy,
        means=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        stds=((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)),
        input_sizes=((3, 28, 28), (3, 28, 28)),
        interpolations=("bicubic", "bicubic"),
    )
    white = PictureTransform(how)(np.full((30, 60, 3), 255, np.uint8))
    assert white.shape == (6, 28, 28)
    middle, corner = white[:, 14, 14].tolist(), white[:, 0, 0].tolist()
    assert middle == pytest.approx([1, 1, 1, 3, 3, 3])
    assert (corner == pytest.approx(middle)) == (strategy != "letterbox")


def test_a_resize_strategy_that_does_not_exist_is_refused(copied: Path) -> None:
    rewrite(copied / "preprocessor_config.json", image_resize_strategy="squash")
    with pytest.raises(Fatal, match="resize-naive, resize-crop, letterbox"):
        load_policy(openvla_card(copied), "cpu")
