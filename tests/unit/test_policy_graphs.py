"""Policies with work of fixed shape: the originals' numbers, on the CPU, and recorded on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpu_consumers.policies.contract import Observation, Policy
from gpu_consumers.policies.graphs import GraphedCall, filled_up
from gpu_consumers.policies.openvla.policy import OpenVLAPolicy
from gpu_consumers.policies.openvla.rows import lay_out
from gpu_consumers.policies.pi0.policy import PI0Policy
from gpu_consumers.policies.pi0.sampling import sample_actions
from tests import tiny_openvla, tiny_pi0
from tests.unit.policy_case import openvla_card, openvla_observations, pi0_card, pi0_observations, run

#: On a GPU convolutions of float32 are done in TF32, whose mantissa has 10 bits.
TF32 = 1e-3
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs")
    tiny_pi0.write_checkpoint(folder / "pi0")
    tiny_openvla.write_checkpoint(folder / "openvla")
    return folder


def test_batches_are_filled_up_to_the_next_size_of_the_card() -> None:
    assert filled_up("ab", (1, 4, 8)) == ["a", "b", "b", "b"]
    assert filled_up("a", (1, 4)) == ["a"]
    assert filled_up("abc", (1, 2)) == ["a", "b", "c"]


def test_pi0_samples_what_transformers_own_loop_samples(folder: Path) -> None:
    """Of three cameras all, the first two, and the outer two are there; all ride in one batch."""
    policy = PI0Policy(pi0_card(folder / "pi0"))
    items = [policy.prepare(one) for one in pi0_observations()]
    base, left, right = tiny_pi0.CAMERAS
    whole = pi0_observations()[0]
    outer = policy.card.model_copy(update={"cameras": (base, right), "optional_cameras": (left,)})
    images = {base: whole.images[base], right: whole.images[right]}
    policy.card = outer
    items.append(
        policy.prepare(Observation(request_id="r", instruction="pick", images=images, state=whole.state, seed=9))
    )

    def stacked(name: str) -> torch.Tensor:
        return torch.stack([getattr(item, name) for item in items])

    names = ("images", "present", "tokens", "mask", "state", "noise")
    with torch.inference_mode():
        ours = sample_actions(policy.model, *map(stacked, names), steps=10)
        theirs = policy.model.sample_actions(
            state=stacked("state"),
            input_ids=stacked("tokens"),
            pixel_values=stacked("images"),
            attention_mask=stacked("mask"),
            pixel_attention_mask=stacked("present"),
            noise=stacked("noise"),
            num_steps=10,
        )
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), patches=st.integers(1, 5), multiple=st.integers(1, 8)
)
def test_every_row_is_begin_token_patches_and_text_and_ends_with_the_others(
    lengths: list[int], patches: int, multiple: int
) -> None:
    prompts = [[100 + 10 * row + index for index in range(length)] for row, length in enumerate(lengths)]
    words, places, mask = lay_out(prompts, patches, multiple=multiple)
    assert words.shape[1] % multiple == 0
    assert words.shape[1] - max(lengths) < multiple
    for row, prompt in enumerate(prompts):
        source = ["padding", *words[row].tolist(), *[f"patch {index}" for index in range(patches)]]
        laid = [source[place] for place in places[row].tolist()]
        expected = [prompt[0], *[f"patch {index}" for index in range(patches)], *prompt[1:]]
        assert laid == ["padding"] * (len(laid) - len(expected)) + expected
        assert mask[row].tolist() == [0] * (len(laid) - len(expected)) + [1] * len(expected)


def test_without_a_gpu_nothing_is_recorded() -> None:
    double = GraphedCall(lambda values: values * 2, "cpu")
    assert not double.records
    assert double(torch.tensor([1.0, 2.0])).tolist() == [2.0, 4.0]


@pytest.mark.gpu
@needs_gpu
def test_a_recording_is_replayed_with_the_values_of_each_call() -> None:
    calls = []

    def double(values: torch.Tensor) -> torch.Tensor:
        calls.append(values.shape)
        return values * 2

    recorded = GraphedCall(double, "cuda:0")
    recorded(torch.zeros(3))
    before = len(calls)
    for number in range(3):
        assert recorded(torch.full((3,), float(number))).tolist() == [2.0 * number] * 3
    assert len(calls) == before
    assert recorded(torch.ones(2)).tolist() == [2.0, 2.0]
    assert len(calls) > before


@pytest.mark.gpu
@needs_gpu
def test_what_cannot_be_recorded_is_called(caplog: pytest.LogCaptureFixture) -> None:
    def picks_by_value(values: torch.Tensor) -> torch.Tensor:
        return values * float(values.sum().item())

    call = GraphedCall(picks_by_value, "cuda:0")
    for number in (1.0, 2.0):
        assert call(torch.full((2,), number)).tolist() == [number * 2 * number] * 2
    assert not call.records
    assert "launched by itself" in caplog.text


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("size", [1, 2, 3])
def test_recorded_pi0_gives_the_actions_of_the_cpu(folder: Path, size: int) -> None:
    card = pi0_card(folder / "pi0", batch_sizes=(1, 2, 4))
    observations = [*pi0_observations(), *pi0_observations()][:size]
    compared = _both(PI0Policy(card), PI0Policy(card, "cuda:0"), observations)
    print(f"\npi0 of {size}, recorded on the GPU against the CPU: {compared:.1e}")
    assert compared < TF32


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("size", [1, 3])
def test_recorded_openvla_gives_the_actions_of_the_cpu(folder: Path, size: int) -> None:
    card = openvla_card(folder / "openvla", batch_sizes=(1, 2, 4))
    observations = openvla_observations()[:size]
    compared = _both(OpenVLAPolicy(card), OpenVLAPolicy(card, "cuda:0"), observations)
    print(f"\nopenvla of {size}, recorded on the GPU against the CPU: {compared:.1e}")
    assert compared < 1e-6


def _both(on_cpu: Policy, on_gpu: Policy, observations: Sequence[Observation]) -> float:
    """The largest difference, of a first and of a second run of other order on the GPU."""
    expected = run(on_cpu, *observations)
    first = run(on_gpu, *observations)
    turned = run(on_gpu, *observations[::-1])[::-1]
    pairs = [*zip(expected, first, strict=True), *zip(expected, turned, strict=True)]
    return max(float(np.abs(one - other).max()) for one, other in pairs)
