"""Writes a small OpenVLA checkpoint in the released layout, from a seed, with numpy alone.

The weights depend on their names and the seed, not on torch or its version, so that another implementation in another
environment can be given the very same ones. Towers and decoder are small, everything else is as released: two shards
with an index, LayerScale under its renamed key, parts that inference never uses, Llama's vocabulary of 32064.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

_SIDE_PX = 56
_PATCH_PX = 14
_PATCHES = (_SIDE_PX // _PATCH_PX) ** 2
#: Width, depth, heads and hidden width of the MLP of each tower.
_TOWERS = {
    "featurizer": {"embed_dim": 48, "depth": 4, "num_heads": 3, "hidden": 192},
    "fused_featurizer": {"embed_dim": 32, "depth": 3, "num_heads": 2, "hidden": 119},
}
_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
_VOCABULARY = 32064
#: The tokens of the 256 bins.
ACTION_TOKENS = range(31744, 32000)


def write_checkpoint(folder: Path, seed: int = 0) -> None:
    """All files of a checkpoint; about 17 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _values(name, shape, seed) for name, shape in _shapes()}
    # Otherwise the likeliest of 32064 random tokens is hardly ever an action.
    tensors["language_model.lm_head.weight"][ACTION_TOKENS.start : ACTION_TOKENS.stop] *= 4
    shards = {
        "model-00001-of-00002.safetensors": [name for name in tensors if not name.startswith("language_model")],
        "model-00002-of-00002.safetensors": [name for name in tensors if name.startswith("language_model")],
    }
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in tensors.values())
    places = {name: file for file, names in shards.items() for name in names}
    _write(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
    _write(folder / "config.json", _config())
    _write(folder / "preprocessor_config.json", _preprocessing())
    _write(folder / "tokenizer.json", _tokenizer())


def cases() -> Iterator[tuple[str, NDArray[np.uint8]]]:
    """Instruction and picture of the observations that implementations are compared on."""
    texts = (
        ("pick up the red block", (56, 56)),
        ("Push", (48, 80)),
        ("put the PEAR on the plate, then stop", (240, 320)),
    )
    for index, (instruction, size) in enumerate(texts):
        rng = np.random.default_rng([7, index])
        coarse = rng.random((8, 8, 3)) * 256
        rows = np.arange(size[0]) * 8 // size[0]
        columns = np.arange(size[1]) * 8 // size[1]
        noise = rng.random((*size, 3)) * 64 - 32
        yield instruction, np.clip(coarse[rows][:, columns] + noise, 0, 255).astype(np.uint8)


def _config() -> dict[str, Any]:
    return {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "arch_specifier": "no-align+fused-gelu-mlp",
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "timm_model_args": [
            {key: value for key, value in tower.items() if key != "hidden"} for tower in _TOWERS.values()
        ],
        "image_sizes": [_SIDE_PX, _SIDE_PX],
        "image_resize_strategy": "resize-naive",
        "use_fused_vision_backbone": True,
        "llm_max_length": 2048,
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "pad_token_id": 32000,
        "torch_dtype": "float32",
        "text_config": {"model_type": "llama", "vocab_size": _VOCABULARY, "pad_token_id": 32000, **_TEXT},
        "norm_stats": {"bridge_orig": {"action": _statistics(0)}, "fractal": {"action": _statistics(1)}},
    }


def _statistics(number: int) -> dict[str, Any]:
    scale = (1 + number) * np.array([0.03, 0.04, 0.05, 0.08, 0.09, 0.2, 1.0])
    low = [*(-scale[:-1]).tolist(), 0.0]
    return {"q01": low, "q99": (scale * 1.1).tolist(), "mask": [True] * 6 + [False]}


def _preprocessing() -> dict[str, Any]:
    return {
        "image_processor_type": "PrismaticImageProcessor",
        "use_fused_vision_backbone": True,
        "image_resize_strategy": "resize-naive",
        "input_sizes": [[3, _SIDE_PX, _SIDE_PX]] * 2,
        "interpolations": ["bicubic", "bicubic"],
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
    }


def _tokenizer() -> dict[str, Any]:
    """Llama's kind of tokenizer: byte fallback, a space in front, letters above the merged pieces."""
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    merges = [
        ("h", "e"),
        ("▁t", "he"),
        ("▁", "t"),
        ("▁", "p"),
        ("o", "t"),
        ("▁r", "o"),
        ("▁", "r"),
        ("i", "n"),
        ("e", "d"),
    ]
    merges += [("▁", "b"), ("l", "o"), ("c", "k"), ("▁b", "lo"), ("▁blo", "ck"), ("▁p", "i"), ("O", "u"), ("Ou", "t")]
    for index, (left, right) in enumerate(merges):
        vocabulary[left + right] = 259 + index
    vocabulary["▁"] = 29871
    letters = "etainosrldhcumpgfybwkvxjqzETAINOSRLDHCUMPGFYBWKVXJQZ0123456789.,:?-'"
    vocabulary |= {letter: 29872 + index for index, letter in enumerate(letters)}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    names = [(0, "<unk>"), (1, "<s>"), (2, "</s>"), (32000, "<PAD>")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": content, **special} for number, content in names],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": None,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocabulary,
            "merges": [f"{left} {right}" for left, right in merges],
        },
    }


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    for tower, sizes in _TOWERS.items():
        yield from ((f"vision_backbone.{tower}.{name}", shape) for name, shape in _tower(sizes, tower == "featurizer"))
    width, text = sum(sizes["embed_dim"] for sizes in _TOWERS.values()), _TEXT["hidden_size"]
    for layer, (out, into) in {"fc1": (4 * width, width), "fc2": (text, 4 * width), "fc3": (text, text)}.items():
        yield from _linear(f"projector.{layer}", out, into)
    yield "language_model.model.embed_tokens.weight", (_VOCABULARY, text)
    for index in range(_TEXT["num_hidden_layers"]):
        layer, inner = f"language_model.model.layers.{index}", _TEXT["intermediate_size"]
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            yield f"{layer}.self_attn.{name}.weight", (text, text)
        for name, shape in {"gate_proj": (inner, text), "up_proj": (inner, text), "down_proj": (text, inner)}.items():
            yield f"{layer}.mlp.{name}.weight", shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{layer}.{name}.weight", (text,)
    yield "language_model.model.norm.weight", (text,)
    yield "language_model.lm_head.weight", (_VOCABULARY, text)


def _tower(sizes: dict[str, int], registers: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    width, hidden = sizes["embed_dim"], sizes["hidden"]
    yield "pos_embed", (1, _PATCHES, width)
    yield "patch_embed.proj.weight", (width, 3, _PATCH_PX, _PATCH_PX)
    yield "patch_embed.proj.bias", (width,)
    if registers:
        yield from (("cls_token", (1, 1, width)), ("reg_token", (1, 4, width)))
    for index in range(sizes["depth"]):
        block = f"blocks.{index}"
        for norm in ("norm1", "norm2"):
            yield from ((f"{block}.{norm}.weight", (width,)), (f"{block}.{norm}.bias", (width,)))
        if registers:
            yield from ((f"{block}.{scale}.scale_factor", (width,)) for scale in ("ls1", "ls2"))
        yield from _linear(f"{block}.attn.qkv", 3 * width, width)
        yield from _linear(f"{block}.attn.proj", width, width)
        yield from _linear(f"{block}.mlp.fc1", hidden, width)
        yield from _linear(f"{block}.mlp.fc2", width, hidden)
    yield from (("norm.weight", (width,)), ("norm.bias", (width,)))
    if not registers:
        yield "attn_pool.latent", (1, 1, width)
        for name, (out, into) in {"q": (width, width), "kv": (2 * width, width), "proj": (width, width)}.items():
            yield from _linear(f"attn_pool.{name}", out, into)
        yield from (("attn_pool.norm.weight", (width,)), ("attn_pool.norm.bias", (width,)))
        yield from _linear("attn_pool.mlp.fc1", hidden, width)
        yield from _linear("attn_pool.mlp.fc2", width, hidden)


def _linear(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _values(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    """Uniform, so wide that every layer passes on what it gets."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    values = rng.random(shape, dtype=np.float32) * 2 - 1
    if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "layernorm.weight", "scale_factor")):
        return np.float32(1) + values / np.float32(2)
    if len(shape) == 1:
        return values / np.float32(10)
    into = math.prod(shape[1:]) if "embed_tokens" not in name and "token" not in name else 1
    return values * np.float32(math.sqrt(3 / into))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
