"""What an OpenVLA folder says of itself: config.json, preprocessor_config.json, dataset_statistics.json."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gpu_consumers.policies.weights import WeightFiles
from runtime.errors import Fatal

#: Fine-tunes bring the statistics of their own data set here; it goes before config.json's.
_OWN_STATISTICS = "dataset_statistics.json"


Found = TypeVar("Found", bound=BaseModel)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Architecture(_Part):
    """config.json, as far as the network depends on it. Defaults are those of the released checkpoints."""

    model_type: str
    timm_model_ids: tuple[str, ...] = Field(min_length=1, max_length=2)
    timm_override_act_layers: tuple[str | None, ...] = (None, None)
    image_sizes: tuple[int, ...] = Field(min_length=1, max_length=2)
    #: Changes to timm's architectures, one mapping for each tower. Released checkpoints have none.
    timm_model_args: tuple[dict[str, Any], ...] = ({}, {})
    text_config: dict[str, Any]
    n_action_bins: int = Field(default=256, ge=2)
    pad_to_multiple_of: int = Field(default=64, ge=0)
    llm_max_length: int = Field(default=2048, ge=1)
    image_resize_strategy: str = "resize-naive"
    norm_stats: dict[str, Any] | None = None

    @property
    def fused(self) -> bool:
        return len(self.timm_model_ids) == 2


class Preprocessing(_Part):
    """preprocessor_config.json: one entry for each tower."""

    image_resize_strategy: str
    means: tuple[tuple[float, float, float], ...]
    stds: tuple[tuple[float, float, float], ...]
    input_sizes: tuple[tuple[int, int, int], ...]
    interpolations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ActionStatistics:
    """Quantiles of one data set. mask: which dimensions they scale; the others (the gripper) pass unchanged."""

    q01: tuple[float, ...]
    q99: tuple[float, ...]
    mask: tuple[bool, ...]


def read_architecture(files: WeightFiles) -> Architecture:
    """Raises Fatal for a folder of another model, or with a language model that is not Llama."""
    architecture = _validated(files, "config.json", Architecture)
    text_type = architecture.text_config.get("model_type", "llama")
    if architecture.model_type != "openvla" or text_type != "llama":
        raise Fatal(
            f"deployment {files.deployment}: {files.folder / 'config.json'} describes {architecture.model_type!r} on "
            f"{text_type!r}, not openvla on llama"
        )
    if len(architecture.image_sizes) != len(architecture.timm_model_ids):
        raise Fatal(f"deployment {files.deployment}: config.json gives other image_sizes than timm_model_ids")
    return architecture


def read_preprocessing(files: WeightFiles, towers: int) -> Preprocessing:
    found = _validated(files, "preprocessor_config.json", Preprocessing)
    lengths = {len(found.means), len(found.stds), len(found.input_sizes), len(found.interpolations)}
    if lengths != {towers}:
        raise Fatal(f"deployment {files.deployment}: preprocessor_config.json does not describe {towers} vision towers")
    return found


def read_statistics(files: WeightFiles, architecture: Architecture, unnorm_key: str | None) -> ActionStatistics:
    """The statistics that scale actions back. Raises Fatal, naming the keys that there are."""
    sets: Mapping[str, Any] = architecture.norm_stats or {}
    if (files.folder / _OWN_STATISTICS).is_file():
        sets = files.json(_OWN_STATISTICS)
    if unnorm_key is None and len(sets) == 1:
        unnorm_key = next(iter(sets))
    known = ", ".join(sorted(sets)) or "none"
    if unnorm_key is None or unnorm_key not in sets:
        raise Fatal(
            f"deployment {files.deployment}: set policy_config.unnorm_key to one of the data sets that the checkpoint "
            f"was trained on (not {unnorm_key!r}): {known}"
        )
    try:
        action = sets[unnorm_key]["action"]
        q01, q99 = tuple(map(float, action["q01"])), tuple(map(float, action["q99"]))
        mask = tuple(map(bool, action.get("mask", [True] * len(q01))))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Fatal(f"deployment {files.deployment}: the statistics of {unnorm_key} lack {error}") from error
    if not len(q01) == len(q99) == len(mask):
        raise Fatal(f"deployment {files.deployment}: q01, q99 and mask of {unnorm_key} have different lengths")
    return ActionStatistics(q01, q99, mask)


class Names:
    """Where the stored tensors belong in the model, which leaves out what the second-to-last block does not need."""

    _BLOCK = re.compile(r"^(vision_backbone\.(?:fused_)?featurizer)\.blocks\.(\d+)\.")
    _UNUSED = re.compile(
        r"^vision_backbone\.(fused_)?featurizer\.(norm|attn_pool|fc_norm|head)\.|rotary_emb\.inv_freq$"
    )

    def __init__(self, stored: list[str]) -> None:
        self._depths: dict[str, int] = {}
        for name in stored:
            if block := self._BLOCK.match(name):
                tower, index = block.group(1), int(block.group(2))
                self._depths[tower] = max(self._depths.get(tower, 0), index + 1)

    def __call__(self, stored: str) -> str | None:
        block = self._BLOCK.match(stored)
        if self._UNUSED.search(stored) or (block and int(block.group(2)) == self._depths[block.group(1)] - 1):
            return None
        # transformers of that time could not load a parameter named gamma.
        return stored.replace(".scale_factor", ".gamma") if stored.startswith("vision_backbone.") else stored


def _validated(files: WeightFiles, name: str, kind: type[Found]) -> Found:
    try:
        return kind.model_validate(files.json(name))
    except ValidationError as error:
        reasons = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise Fatal(f"deployment {files.deployment}: {files.folder / name}: {reasons}") from error
