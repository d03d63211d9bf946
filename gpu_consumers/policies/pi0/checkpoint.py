"""The two layouts in which PI0 checkpoints lie about: transformers' and lerobot's.

Both name their tensors after openpi's modules. lerobot's fine-tunes put `model.` in front, older ones hold statistics
among the weights, newer ones in `policy_preprocessor.json` and the safetensors file that it names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import PI0Config

from gpu_consumers.policies.scaling import Scaling, by_mean, by_range, identity
from gpu_consumers.policies.weights import WeightFiles
from runtime.errors import Fatal

#: Stored name -> name in PI0ForConditionalGeneration; "" where the model has no use for it. The first match counts.
_RENAMES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), target)
    for pattern, target in (
        (r"^(un)?normalize_(inputs|targets|outputs)\..*", ""),
        # The expert is fed with embeddings: neither its vocabulary nor its head is ever used.
        (r"^paligemma_with_expert\.gemma_expert\.(lm_head|model\.embed_tokens)\..*", ""),
        (r"^model\.dit\.embed_tokens\..*", ""),
        (r"^paligemma_with_expert\.gemma_expert\.model\.", "model.dit."),
        (r"^paligemma_with_expert\.paligemma\.(language_model\.)?lm_head\.", "model.vlm.language_model.embed_tokens."),
        (r"^paligemma_with_expert\.paligemma\.(model\.)?language_model\.(model\.)?", "model.vlm.language_model."),
        (r"^paligemma_with_expert\.paligemma\.(model\.)?vision_tower\.(vision_model\.)?", "model.vlm.vision_tower."),
        (r"^paligemma_with_expert\.paligemma\.(model\.)?multi_modal_projector\.", "model.vlm.multi_modal_projector."),
        (r"^(state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.", r"embed_action_time.\1."),
    )
)
_HEAD = re.compile(r"paligemma\.(language_model\.)?lm_head\.weight$")
_EMBEDDING = re.compile(r"paligemma\.(model\.)?language_model\.(model\.)?embed_tokens\.weight$")
_VARIANTS = ("gemma_2b", "gemma_300m")


class Layout(StrEnum):
    TRANSFORMERS = "transformers"
    LEROBOT = "lerobot"


class Names:
    """Where the tensors of one checkpoint belong in the model."""

    def __init__(self, stored: list[str]) -> None:
        # A checkpoint may hold the tied embedding as itself, as the head, or as both.
        self._head_is_embedding = not any(_EMBEDDING.search(name) for name in stored)

    def __call__(self, stored: str) -> str | None:
        """Place of a stored tensor in the model, None for what the model has no use for."""
        name = stored
        if name.startswith("model.") and not name.startswith(("model.vlm.", "model.dit.")):
            name = name.removeprefix("model.")
        if _HEAD.search(name) and not self._head_is_embedding:
            return None
        for pattern, target in _RENAMES:
            if pattern.match(name):
                return pattern.sub(target, name) or None
        return name


def read_config(files: WeightFiles) -> tuple[PI0Config, Layout]:
    """The architecture that config.json describes, and the layout of the folder. Raises Fatal for another model."""
    content = files.json("config.json")
    where = f"deployment {files.deployment}: {files.folder / 'config.json'}"
    if content.get("model_type") == "pi0":
        return PI0Config.from_dict(content), Layout.TRANSFORMERS
    if content.get("type") != "pi0":
        kind = content.get("type") or content.get("model_type")
        raise Fatal(f"{where} describes {kind!r}, not pi0; other models run behind the policy openpi_remote")
    if content.get("use_relative_actions"):
        raise Fatal(f"{where}: use_relative_actions is not supported; train with absolute or with plain delta actions")
    variants = (content.get("paligemma_variant", "gemma_2b"), content.get("action_expert_variant", "gemma_300m"))
    own_sizes = "vlm_config" in content and "dit_config" in content
    if variants != _VARIANTS and not own_sizes:
        raise Fatal(f"{where}: variants {variants} need vlm_config and dit_config, as transformers' PI0Config has them")
    wanted = ("chunk_size", "max_state_dim", "max_action_dim", "min_period", "max_period", "vlm_config", "dit_config")
    # Any: the annotations of transformers' configurations know neither dictionaries nor what becomes of them.
    build: Any = PI0Config
    config = build(**{name: content[name] for name in wanted if name in content})
    side_px = int(config.vlm_config.vision_config.image_size)
    if content.get("image_resolution", [side_px, side_px]) != [side_px, side_px]:
        raise Fatal(f"{where}: image_resolution is not the {side_px} x {side_px} of its vision tower")
    return config, Layout.LEROBOT


def stored_statistics(files: WeightFiles) -> tuple[Scaling | None, Scaling | None]:
    """Scalings of state and action that a lerobot folder holds, None for each that it does not. Raises Fatal."""
    modes = _modes(files.json("config.json").get("normalization_mapping"))
    numbers: dict[str, NDArray[np.float64]] = {}
    for side, kind in (("policy_preprocessor", "normalizer"), ("policy_postprocessor", "unnormalizer")):
        if (files.folder / f"{side}.json").is_file():
            found, found_modes = _of_processor(files, f"{side}.json", kind)
            numbers |= found
            modes |= found_modes
    if not numbers:
        numbers = _of_buffers(files)
    try:
        return (
            _scaling(numbers, "observation.state", modes.get("STATE", "MEAN_STD")),
            _scaling(numbers, "action", modes.get("ACTION", "MEAN_STD")),
        )
    except ValueError as error:
        raise Fatal(f"deployment {files.deployment}: the statistics in {files.folder}: {error}") from error


def _of_processor(files: WeightFiles, name: str, kind: str) -> tuple[dict[str, NDArray[np.float64]], dict[str, str]]:
    steps = files.json(name).get("steps")
    for step in steps if isinstance(steps, list) else []:
        if step.get("registry_name") != f"{kind}_processor":
            continue
        modes = _modes(step.get("config", {}).get("norm_map"))
        state_file = step.get("state_file")
        if not state_file:
            return {}, modes
        path = files.folder / str(state_file)
        if path.parent != files.folder or not path.is_file():
            raise Fatal(f"deployment {files.deployment}: {files.folder} lacks {state_file}, which {name} names")
        return {key: value.astype(np.float64) for key, value in load_file(path).items()}, modes
    return {}, {}


def _of_buffers(files: WeightFiles) -> dict[str, NDArray[np.float64]]:
    """What lerobot put among the weights until 0.3; endless values mean that nothing was set."""
    names = {
        "normalize_inputs.buffer_observation_state": "observation.state",
        "unnormalize_outputs.buffer_action": "action",
    }
    found: dict[str, NDArray[np.float64]] = {}
    for stored, tensor in files.read(low_cpu_memory=True, wanted=lambda name: "normalize_" in name):
        owner, _, statistic = stored.removeprefix("model.").rpartition(".")
        values = tensor.double().numpy()
        if owner in names and np.isfinite(values).all():
            found[f"{names[owner]}.{statistic}"] = values.copy()
    return found


def _scaling(numbers: Mapping[str, NDArray[np.float64]], feature: str, mode: str) -> Scaling | None:
    def values(statistic: str) -> list[float]:
        return [float(value) for value in numbers[f"{feature}.{statistic}"].reshape(-1)]

    own = [key for key in numbers if key.startswith(f"{feature}.")]
    if not own:
        return None
    if mode == "IDENTITY":
        return identity(len(values(own[0].removeprefix(f"{feature}."))))
    pairs = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
    pairs["QUANTILE10"] = ("q10", "q90")
    if mode not in pairs:
        raise ValueError(f"normalisation {mode} of {feature} is not known")
    first, second = pairs[mode]
    if f"{feature}.{first}" not in numbers or f"{feature}.{second}" not in numbers:
        raise ValueError(f"normalisation {mode} of {feature} needs its {first} and {second}")
    return (by_mean if mode == "MEAN_STD" else by_range)(values(first), values(second))


def _modes(mapping: Any) -> dict[str, str]:
    return {str(kind): str(mode) for kind, mode in mapping.items()} if isinstance(mapping, dict) else {}
