"""Writes a small PI0 checkpoint in lerobot's layout, from a seed, with numpy alone.

The weights depend on their names and the seed, not on torch, so that lerobot itself can be given the very same ones.
Its config.json names the sizes that lerobot's two variants would fix.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

STATE_DIM, ACTION_DIM, HORIZON = 5, 4, 6
CAMERAS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
TEXT_TOKENS = 12
_SIDE_PX, _PATCH_PX = 28, 14
_PADDED_DIM = 8
_VISION = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3}
_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_EXPERT = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
_HEADS = {"head_dim": 16, "num_key_value_heads": 1}
_WORDS = (
    "reach",
    "pick",
    "Pick",
    "up",
    "push",
    "the",
    "red",
    "green",
    "blue",
    "block",
    "to",
    "left",
    "and",
    "place",
    "it",
)
_VOCABULARY = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """images: by camera, uint8 (height, width, 3); state: (STATE_DIM,); noise: (HORIZON, padded action dim)."""

    instruction: str
    images: dict[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    noise: NDArray[np.float32]


def write_checkpoint(
    folder: Path,
    seed: int = 0,
    *,
    prefix: str = "",
    statistics: Literal["processors", "buffers", "none"] = "processors",
    mode: str = "MEAN_STD",
) -> None:
    """All files of a checkpoint; about 600 kB.

    prefix: in front of every tensor: `model.` as lerobot saves, nothing as openpi's conversion left it. statistics: in
    files of their own as lerobot writes since 0.4, among the weights as before.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {prefix + name: values(name, shape, seed) for name, shape in shapes()}
    numbers = _statistics()
    if statistics == "buffers":
        for name, owner in {
            "observation.state": "normalize_inputs.buffer_observation_state",
            "action": "unnormalize_outputs.buffer_action",
        }.items():
            tensors |= {f"{owner}.{key}": numbers[f"{name}.{key}"] for key in ("mean", "std")}
    if statistics == "processors":
        for side, step in (("pre", "normalizer"), ("post", "unnormalizer")):
            file = f"policy_{side}processor_step_1_{step}_processor.safetensors"
            save_file(numbers, folder / file)
            modes = {"STATE": mode, "ACTION": mode}
            steps = [
                {"registry_name": "rename_observations_processor", "config": {"rename_map": {}}},
                {"registry_name": f"{step}_processor", "config": {"eps": 1e-8, "norm_map": modes}, "state_file": file},
            ]
            _write(folder / f"policy_{side}processor.json", {"name": f"policy_{side}processor", "steps": steps})
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config(mode))
    _write(folder / "tokenizer.json", _tokenizer())


def config(mode: str = "MEAN_STD") -> dict[str, Any]:
    pictures = {f"observation.images.{camera}": {"type": "VISUAL", "shape": [3, 28, 28]} for camera in CAMERAS}
    return {
        "type": "pi0",
        "n_obs_steps": 1,
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": mode, "ACTION": mode},
        "input_features": {**pictures, "observation.state": {"type": "STATE", "shape": [STATE_DIM]}},
        "output_features": {"action": {"type": "ACTION", "shape": [ACTION_DIM]}},
        "paligemma_variant": "gemma_2b",
        "action_expert_variant": "gemma_300m",
        "dtype": "float32",
        "chunk_size": HORIZON,
        "max_state_dim": _PADDED_DIM,
        "max_action_dim": _PADDED_DIM,
        "num_inference_steps": 10,
        "image_resolution": [_SIDE_PX, _SIDE_PX],
        "tokenizer_max_length": TEXT_TOKENS,
        "vlm_config": {
            "model_type": "paligemma",
            "image_token_id": _VOCABULARY,
            "projection_dim": _TEXT["hidden_size"],
            "text_config": {"model_type": "gemma", "vocab_size": _VOCABULARY, **_TEXT, **_HEADS},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "image_size": _SIDE_PX,
                "patch_size": _PATCH_PX,
                "vision_use_head": False,
                **_VISION,
            },
        },
        "dit_config": {"model_type": "gemma", "vocab_size": _VOCABULARY, **_EXPERT, **_HEADS},
    }


def cases() -> Iterator[Case]:
    """Observations that implementations are compared on: three cameras, then two, pictures of several sizes."""
    wanted = (("pick up the red block", CAMERAS, (28, 28)), ("Pick it and place it to the left", CAMERAS[:2], (45, 80)))
    for index, (instruction, cameras, size) in enumerate(wanted):
        rng = np.random.default_rng([11, index])
        yield Case(
            instruction=instruction,
            images={camera: (rng.random((*size, 3)) * 256).astype(np.uint8) for camera in cameras},
            state=(rng.random(STATE_DIM) * 2 - 1).astype(np.float32),
            noise=(rng.random((HORIZON, _PADDED_DIM)) * 4 - 2).astype(np.float32),
        )


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors as lerobot/pi0_base names them: the language model's head, which is its embedding, and no embedding."""
    expert, text = _EXPERT["hidden_size"], _TEXT["hidden_size"]
    projections = {
        "state_proj": (expert, _PADDED_DIM),
        "action_in_proj": (expert, _PADDED_DIM),
        "action_out_proj": (_PADDED_DIM, expert),
        "action_time_mlp_in": (expert, 2 * expert),
        "action_time_mlp_out": (expert, expert),
    }
    for name, (out, into) in projections.items():
        yield from _linear(name, out, into)
    paligemma, gemma = "paligemma_with_expert.paligemma", "paligemma_with_expert.gemma_expert"
    yield f"{paligemma}.lm_head.weight", (_VOCABULARY, text)
    yield f"{gemma}.lm_head.weight", (_VOCABULARY, expert)
    yield from _gemma(f"{paligemma}.model.language_model", _TEXT)
    yield from _gemma(f"{gemma}.model", _EXPERT)
    yield from _linear(f"{paligemma}.model.multi_modal_projector.linear", text, _VISION["hidden_size"])
    yield from _vision(f"{paligemma}.model.vision_tower.vision_model")


def values(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Uniform, so wide that every layer passes on what it gets. Gemma's norms multiply by one and their weight."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    drawn = rng.random(shape, dtype=np.float32) * 2 - 1
    if len(shape) == 1:
        return np.float32("layer_norm" in name and name.endswith("weight")) + drawn / np.float32(5)
    return drawn * np.float32(math.sqrt(3 / math.prod(shape[1:])))


def _statistics() -> dict[str, NDArray[np.float32]]:
    found: dict[str, NDArray[np.float32]] = {}
    for name, dim in {"observation.state": STATE_DIM, "action": ACTION_DIM}.items():
        mean, std = np.linspace(-0.5, 0.5, dim), np.linspace(0.2, 2, dim)
        numbers = {"mean": mean, "std": std, "min": mean - 3 * std, "max": mean + 3 * std}
        numbers |= {"q01": mean - 2 * std, "q99": mean + 2.5 * std}
        found |= {f"{name}.{key}": value.astype(np.float32) for key, value in numbers.items()}
    return found


def _gemma(name: str, sizes: dict[str, int]) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner, head = sizes["hidden_size"], sizes["intermediate_size"], _HEADS["head_dim"]
    queries = sizes["num_attention_heads"] * head
    for index in range(sizes["num_hidden_layers"]):
        layer = f"{name}.layers.{index}"
        yield f"{layer}.self_attn.q_proj.weight", (queries, width)
        yield f"{layer}.self_attn.k_proj.weight", (head, width)
        yield f"{layer}.self_attn.v_proj.weight", (head, width)
        yield f"{layer}.self_attn.o_proj.weight", (width, queries)
        yield f"{layer}.mlp.gate_proj.weight", (inner, width)
        yield f"{layer}.mlp.up_proj.weight", (inner, width)
        yield f"{layer}.mlp.down_proj.weight", (width, inner)
        yield f"{layer}.input_layernorm.weight", (width,)
        yield f"{layer}.post_attention_layernorm.weight", (width,)
    yield f"{name}.norm.weight", (width,)


def _vision(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, inner = _VISION["hidden_size"], _VISION["intermediate_size"]
    yield f"{name}.embeddings.patch_embedding.weight", (width, 3, _PATCH_PX, _PATCH_PX)
    yield f"{name}.embeddings.patch_embedding.bias", (width,)
    yield f"{name}.embeddings.position_embedding.weight", ((_SIDE_PX // _PATCH_PX) ** 2, width)
    for index in range(_VISION["num_hidden_layers"]):
        layer = f"{name}.encoder.layers.{index}"
        for norm in ("layer_norm1", "layer_norm2"):
            yield from ((f"{layer}.{norm}.weight", (width,)), (f"{layer}.{norm}.bias", (width,)))
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"{layer}.self_attn.{part}", width, width)
        yield from _linear(f"{layer}.mlp.fc1", inner, width)
        yield from _linear(f"{layer}.mlp.fc2", width, inner)
    yield from ((f"{name}.post_layernorm.weight", (width,)), (f"{name}.post_layernorm.bias", (width,)))


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _tokenizer() -> dict[str, Any]:
    """Words, a newline of its own, and a begin token in front, as PaliGemma's has."""
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "\n", *_WORDS)
    spaces = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
    newlines = {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [spaces, newlines]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<bos>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {name: index for index, name in enumerate(names)},
            "unk_token": "<unk>",
        },
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
