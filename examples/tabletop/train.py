"""Trains the tabletop policy: a tiny PI0, behaviour cloning of the expert by flow matching.

    OMP_NUM_THREADS=1 python -m examples.tabletop.train --steps 2100

Demonstrations are made on the fly: worlds in parallel advance under the expert, half of them disturbed, and every batch
is labelled with the expert's next actions. What makes it learn to look is an auxiliary loss, in training only: after
the first layer of the language model each image token says whether it holds the named block, after the second each
text token says where that block is.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from torch.nn import functional
from transformers import PI0Config, PI0ForConditionalGeneration

from examples.tabletop.expert import act, demonstrate
from examples.tabletop.render import render, scene_of
from examples.tabletop.world import COLOURS, TASKS, Worlds, instruction_of, sample

POLICY_FOLDER = Path(__file__).resolve().parent / "policy"
VOCABULARY = "<pad> <unk> reach pick up push the red green blue yellow block to left right".split()  # noqa: SIM905 - words read better in a line
IMAGE_TOKEN_ID = len(VOCABULARY)
IMAGE_SIDE_PX, PATCH_PX, HIDDEN, LAYERS, HORIZON = 32, 8, 128, 4, 8
PATCHES = (IMAGE_SIDE_PX // PATCH_PX) ** 2
TEXT_TOKENS = 8
STATE_DIM, ACTION_DIM = 8, 7
#: Physical = scaled * std + mean; the card of the deployment repeats them.
ACTION_MEAN = np.array([0, 0, 0, 0, 0, 0, 0.5])
ACTION_STD = np.array([0.04, 0.04, 0.04, 1, 1, 1, 0.5])
STATE_MEAN = np.array([0.5, 0.5, 0.2, 0, 0, 0, 0.02, 0.02])
STATE_STD = np.array([0.25, 0.25, 0.1, 1, 1, 1, 0.02, 0.02])


def build_model() -> PI0ForConditionalGeneration:
    gemma = {
        "model_type": "gemma",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": len(VOCABULARY) + 1,
        "initializer_range": 0.04,
        "pad_token_id": 0,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": IMAGE_SIDE_PX,
        "patch_size": PATCH_PX,
        "vision_use_head": False,
    }
    config = PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": gemma,
            "vision_config": vision,
            "projection_dim": HIDDEN,
            "image_token_id": IMAGE_TOKEN_ID,
        },
        dit_config=gemma,
        chunk_size=HORIZON,
        max_state_dim=STATE_DIM,
        max_action_dim=ACTION_DIM,
        num_inference_steps=5,
        initializer_range=0.04,  # type: ignore[call-arg] # kept as an attribute, which weight initialisation reads
    )
    return PI0ForConditionalGeneration(config)


def build_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


class AuxiliaryHeads(nn.Module):
    """Say where the named block is: from image tokens after layer 0, from text tokens after layer 1."""

    def __init__(self) -> None:
        super().__init__()
        self.holds = nn.Linear(HIDDEN, 1)
        self.offset = nn.Linear(HIDDEN, 2)
        self.place = nn.Linear(HIDDEN, 2)

    def loss(self, after_0: torch.Tensor, after_1: torch.Tensor, mask: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
        """after_0, after_1: (batch, tokens, hidden); mask: (batch, tokens); xy: (batch, 2) in metres."""
        side = IMAGE_SIDE_PX // PATCH_PX
        column = (xy[:, 0] * side).long().clamp(0, side - 1)
        row = ((1 - xy[:, 1]) * side).long().clamp(0, side - 1)
        patch = row * side + column
        image = after_0[:, :PATCHES]
        cross_entropy = functional.cross_entropy(self.holds(image).squeeze(-1), patch)
        centre = torch.stack([(column + 0.5) / side, 1 - (row + 0.5) / side], dim=1)
        chosen = image[torch.arange(len(image)), patch]
        offset = functional.mse_loss(self.offset(chosen), (xy - centre) * 2 * side)
        text_mask = mask[:, PATCHES:].unsqueeze(-1).float()
        error = (self.place(after_1[:, PATCHES:]) - (xy[:, None] - 0.5) * 4) ** 2
        place = (error * text_mask).sum() / (text_mask.sum() * 2)
        total: torch.Tensor = cross_entropy + offset + place
        return total


class Demonstrations:
    """Worlds that advance under the expert between batches."""

    def __init__(self, seed: int, batch: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._batch = batch
        self._worlds = sample(self._rng, batch)
        self._age = np.zeros(batch, np.int64)
        self._tokens, self._masks = _instruction_tokens()

    def next(self) -> dict[str, torch.Tensor]:
        self._advance()
        worlds = self._worlds
        pixels = render(scene_of(worlds), IMAGE_SIDE_PX).astype(np.float32)
        # What JPEG and scaling down add to a picture.
        pixels += self._rng.normal(0, 2.5, pixels.shape) + self._rng.normal(0, 4, (len(pixels), 1, 1, 1))
        colour = worlds.colours[np.arange(worlds.count), worlds.target]
        actions = (demonstrate(worlds, HORIZON) - ACTION_MEAN) / ACTION_STD
        return {
            "images": torch.from_numpy(np.clip(pixels, 0, 255) / 127.5 - 1).float().permute(0, 3, 1, 2).unsqueeze(1),
            "tokens": self._tokens[worlds.task, colour],
            "mask": self._masks[worlds.task, colour],
            "state": torch.from_numpy((worlds.states() - STATE_MEAN) / STATE_STD).float(),
            "actions": torch.from_numpy(actions).float(),
            "xy": torch.from_numpy(worlds.target_xy).float(),
        }

    def _advance(self) -> None:
        rng = self._rng
        for _ in range(rng.integers(2, 6)):
            actions = act(self._worlds)
            disturbed = rng.random(self._batch) < 0.5
            actions[:, :3] += rng.normal(0, 0.015, (self._batch, 3)) * disturbed[:, None]
            self._worlds.step(actions)
            self._age += 1
        # Some stay a little beyond success: the policy must learn to stay still, too.
        over = self._worlds.failed | (self._worlds.success & (rng.random(self._batch) < 0.6)) | (self._age > 40)
        over |= rng.random(self._batch) < 0.02
        fresh: Worlds = sample(rng, self._batch)
        wide: Worlds = sample(rng, self._batch, wide=True)
        fresh.put(rng.random(self._batch) < 0.35, wide)
        self._worlds.put(over, fresh)
        self._age[over] = 0


def _instruction_tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and masks of every instruction, (tasks, colours, PATCHES + TEXT_TOKENS)."""
    tokenizer = build_tokenizer()
    tokens = torch.zeros(len(TASKS), len(COLOURS), PATCHES + TEXT_TOKENS, dtype=torch.long)
    tokens[..., :PATCHES] = IMAGE_TOKEN_ID
    masks = torch.zeros_like(tokens)
    for task in range(len(TASKS)):
        for colour in range(len(COLOURS)):
            text = tokenizer.encode(instruction_of(task, colour)).ids
            tokens[task, colour, PATCHES : PATCHES + len(text)] = torch.tensor(text)
            masks[task, colour, : PATCHES + len(text)] = 1
    return tokens, masks


def flow_loss(
    model: PI0ForConditionalGeneration, batch: dict[str, torch.Tensor], noises: int = 2
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Flow loss of a batch, and the language model's hidden states after each layer.

    The prefix is computed once and shared by `noises` samples. batch: as `Demonstrations.next` gives it.
    """
    mask = batch["mask"]
    cameras = torch.ones(batch["images"].shape[:2], dtype=torch.bool)
    prefix = model.model.embed_prefix(batch["tokens"], batch["images"], cameras)
    outputs = model.model.vlm(
        inputs_embeds=prefix,
        attention_mask=mask,
        position_ids=mask.cumsum(-1) - 1,
        token_type_ids=torch.zeros_like(prefix)[:, :, 0],
        use_cache=True,
        output_hidden_states=True,
    )
    cache = outputs.past_key_values
    length = cache.get_seq_length()
    flow = torch.zeros(())
    for _ in range(noises):
        output = model(state=batch["state"], actions=batch["actions"], attention_mask=mask, past_key_values=cache)
        flow = flow + output.loss.mean()
        cache.crop(length)
    return flow / noises, outputs.hidden_states


def loss_of(
    model: PI0ForConditionalGeneration, heads: AuxiliaryHeads, batch: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow loss and auxiliary loss of a batch."""
    flow, hidden = flow_loss(model, batch)
    return flow, heads.loss(hidden[1], hidden[2], batch["mask"], batch["xy"])


def learning_rate(step: int, steps: int, peak: float = 1.5e-3, warm_up: int = 200) -> float:
    if step < warm_up:
        return peak * (step + 1) / warm_up
    progress = (step - warm_up) / max(steps - warm_up, 1)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))


def save(model: PI0ForConditionalGeneration, folder: Path) -> None:
    """config.json, model.safetensors and tokenizer.json: all that the policy reads."""
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder, safe_serialization=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))


def train(steps: int, seed: int, batch: int, folder: Path) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    model, heads = build_model(), AuxiliaryHeads()
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.95), weight_decay=1e-4)
    demonstrations = Demonstrations(seed, batch)
    started = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        flow, auxiliary = loss_of(model, heads, demonstrations.next())
        optimizer.zero_grad(set_to_none=True)
        (flow + 0.5 * auxiliary).backward()  # type: ignore[no-untyped-call] # of torch
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 25 == 0 or step == steps - 1:
            elapsed_s = time.monotonic() - started
            print(f"{step:5d}/{steps} {elapsed_s:6.0f} s  flow {flow:.4f}  auxiliary {auxiliary:.4f}", flush=True)
        if step and step % 300 == 0:
            save(model, folder)
    save(model, folder)
    print(f"saved to {folder} after {time.monotonic() - started:.0f} s, seed {seed}, {steps} steps of {batch}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--out", type=Path, default=POLICY_FOLDER)
    arguments = parser.parse_args()
    train(arguments.steps, arguments.seed, arguments.batch, arguments.out)


if __name__ == "__main__":
    main()
