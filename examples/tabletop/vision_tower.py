"""Trains the small vision tower of the demo: pictures of the table that show about the same get similar vectors.

    python -m examples.tabletop.vision_tower --out examples/tabletop/vision_tower

It is no CLIP, only built like the image side of one, so that the embedder loads it as it loads CLIP. Trained by
contrast (InfoNCE, van den Oord et al. 2018): two views of one scene, a few steps apart and in another light, are
to be nearer to each other than to any other scene of the batch.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from examples.tabletop.expert import act
from examples.tabletop.render import render, scene_of
from examples.tabletop.world import sample
from schemas.embeddings import IMAGE_EMBEDDING_DIM

LABEL = "vlastream/demo-vision-tower"
SIDE_PX = 64
_TEMPERATURE = 0.1


def scenes(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Pairs of pictures (count, SIDE, SIDE, 3) of one scene, up to eight of the expert's steps apart."""
    random = np.random.default_rng(seed)
    worlds = sample(random, count, wide=True)
    for _ in range(int(random.integers(0, 10))):
        worlds.step(act(worlds))
    first = render(scene_of(worlds), SIDE_PX)
    for _ in range(int(random.integers(1, 8))):
        worlds.step(act(worlds))
    return first, render(scene_of(worlds), SIDE_PX)


def _tensor(pixels: NDArray[np.uint8], generator: torch.Generator) -> torch.Tensor:
    """Normalised, each picture in a light of its own."""
    scaled = torch.from_numpy(pixels.astype(np.float32) / 255).permute(0, 3, 1, 2)
    light = 0.6 + 0.8 * torch.rand((len(pixels), 1, 1, 1), generator=generator)
    return ((scaled * light).clamp(0, 1) - 0.5) / 0.5


def train(pairs: int, steps: int, seed: int) -> CLIPVisionModelWithProjection:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    labelled: dict[str, Any] = {"label": LABEL}
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE_PX,
        patch_size=8,
        projection_dim=IMAGE_EMBEDDING_DIM,
        **labelled,
    )
    model = CLIPVisionModelWithProjection(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    for step in range(steps):
        views = [_tensor(pixels, generator) for pixels in scenes(pairs, seed + step)]
        a, b = (torch.nn.functional.normalize(model(pixel_values=view).image_embeds, dim=-1) for view in views)
        logits = a @ b.T / _TEMPERATURE
        target = torch.arange(pairs)
        entropy = torch.nn.functional.cross_entropy
        loss = (entropy(logits, target) + entropy(logits.T, target)) / 2
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            found = (logits.argmax(1) == target).float().mean().item()
            print(f"step {step}: loss {loss.item():.3f}, its own scene found first in {found:.0%}", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, help="scenes in a batch", default=96)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    model = train(options.pairs, options.steps, options.seed)
    torch.nn.Module.half(model)
    model.save_pretrained(options.out)
    CLIPImageProcessorPil(
        size={"height": SIDE_PX, "width": SIDE_PX},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(options.out)


if __name__ == "__main__":
    main()
