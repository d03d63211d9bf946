"""Checkpoints of full size with random weights: what a model costs in time and memory without its weights at hand.

    python -m benchmarks.full_size pi0 /dev/shm/pi0
    vlastream models check /dev/shm/pi0/pi0-full.yaml

Each folder holds the weights in bfloat16, a tokenizer of a few words, and cards. Architecture, sizes and the way they
are loaded are those of the released checkpoints; actions mean nothing, so the cards scale them down to almost none.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.initialization import no_init_weights

from benchmarks.frames import CAMERAS, ROBOT_TYPE
from gpu_consumers.policies.openvla.checkpoint import Architecture
from gpu_consumers.policies.openvla.network import build

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_WORDS = ("pick", "up", "push", "reach", "place", "the", "red", "green", "blue", "block", "to", "left", "right", "and")
#: Scales of the tabletop arm's actions, so small that no gate finds anything in them.
_STILL = {"action_mean": [0, 0, 0, 0, 0, 0, 0.5], "action_std": [1e-4] * 7}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=tuple(_WRITERS))
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    for card in _WRITERS[options.model](options.folder):
        print(card)
    return 0


def write_pi0(folder: Path) -> list[Path]:
    """PI0 as released: PaliGemma 3B, a 300M expert, chunks of 50. Cards: one camera, three cameras, without graphs."""
    config = PI0Config()
    with torch.device("meta"), no_init_weights():
        model = PI0ForConditionalGeneration(config)
    model.model.dit.embed_tokens = None
    _write_weights(folder, model.state_dict())
    _write_json(folder / "config.json", {"model_type": "pi0", **config.to_dict()})
    _write_json(folder / "tokenizer.json", _tokenizer(first=3, begin=2))
    card = {"policy": "pi0", "horizon": 50, "normalisation": _STILL, "policy_config": {}}
    return [
        _write_card(folder, "pi0-full", {**card, "cameras": list(CAMERAS[:1])}),
        _write_card(folder, "pi0-full-3", {**card, "cameras": list(CAMERAS)}),
        _write_card(
            folder, "pi0-full-launched", {**card, "cameras": list(CAMERAS[:1]), "policy_config": {"graphs": False}}
        ),
    ]


def write_openvla(folder: Path) -> list[Path]:
    """OpenVLA-7B as released: DINOv2 and SigLIP at 224 px, Llama 2 7B. Cards: with and without graphs."""
    config: dict[str, Any] = {
        "model_type": "openvla",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "image_sizes": [224, 224],
        "text_config": {"model_type": "llama", "vocab_size": 32064, "pad_token_id": 32000},
        "norm_stats": {"still": {"action": {"q01": [-1e-4] * 7, "q99": [1e-4] * 7}}},
    }
    with torch.device("meta"):
        tensors = dict(build(Architecture.model_validate(config)).state_dict())
    # Released files hold one block more in each tower than inference needs; the loader leaves it out.
    for tower, blocks in {"featurizer": 24, "fused_featurizer": 27}.items():
        tensors[f"vision_backbone.{tower}.blocks.{blocks - 1}.norm1.weight"] = torch.empty(1, device="meta")
    _write_weights(folder, tensors)
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "preprocessor_config.json",
        {
            "image_resize_strategy": "resize-naive",
            "input_sizes": [[3, 224, 224]] * 2,
            "interpolations": ["bicubic"] * 2,
            "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
            "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        },
    )
    _write_json(folder / "tokenizer.json", _tokenizer(first=3, begin=1))
    card = {"policy": "openvla", "horizon": 1, "cameras": list(CAMERAS[:1])}
    return [
        _write_card(folder, "openvla-full", {**card, "policy_config": {"unnorm_key": "still"}}),
        _write_card(
            folder, "openvla-full-launched", {**card, "policy_config": {"unnorm_key": "still", "graphs": False}}
        ),
    ]


_WRITERS = {"pi0": write_pi0, "openvla": write_openvla}


def _write_weights(folder: Path, shapes: Mapping[str, torch.Tensor]) -> None:
    """Normal with the deviation 0.02 that such networks begin with; norms of towers near one."""
    folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(device).manual_seed(0)
    tensors = {}
    for name, shape in shapes.items():
        drawn = torch.randn(shape.shape, generator=generator, device=device, dtype=torch.bfloat16) * 0.02
        is_norm = name.endswith("weight") and shape.ndim == 1
        tensors[name] = (drawn + 1 if is_norm and "dit" not in name and "vlm.language" not in name else drawn).cpu()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _write_card(folder: Path, deployment: str, fields: Mapping[str, object]) -> Path:
    card = {
        "model": deployment,
        "deployment": deployment,
        "title": f"{deployment}: full size, random weights",
        "weights": ".",
        "embodiments": [ROBOT_TYPE],
        "state_dim": 8,
        "action_dim": 7,
        "dtype": "bfloat16",
        "batch_sizes": list(BATCH_SIZES),
        **fields,
    }
    path = folder / f"{deployment}.yaml"
    path.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return path


def _tokenizer(first: int, begin: int) -> dict[str, Any]:
    """Whole words from `first` on, everything else unknown, a begin token in front: as many tokens as words."""
    vocabulary = {"<unk>": 0, **{word: first + index for index, word in enumerate(_WORDS)}}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [begin], "tokens": ["<bos>"]}},
        },
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"},
    }


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
