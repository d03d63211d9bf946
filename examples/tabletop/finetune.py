"""Trains the tabletop policy on from an exported LeRobot dataset: what the fleet lived becomes what it learns.

    vlastream export lerobot --robot-type tabletop_arm --out dataset
    python -m examples.tabletop.finetune --dataset dataset --steps 50 --out policy

Read by plain pyarrow, so that nothing of lerobot is needed; in lerobot `LeRobotDataset("name", root="dataset")` reads
the same files.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from PIL import Image
from transformers import PI0ForConditionalGeneration

from examples.tabletop.train import (
    ACTION_MEAN,
    ACTION_STD,
    HORIZON,
    IMAGE_SIDE_PX,
    IMAGE_TOKEN_ID,
    PATCHES,
    POLICY_FOLDER,
    STATE_MEAN,
    STATE_STD,
    TEXT_TOKENS,
    build_tokenizer,
    flow_loss,
    save,
)

_CAMERA = "observation.images.base"
_COLUMNS = ["observation.state", "action", "is_keyframe", "episode_index", "task_index"]


class Frames:
    """All keyframes of a dataset with the actions that followed, as tensors."""

    def __init__(self, folder: Path) -> None:
        self.info: dict[str, Any] = json.loads((folder / "meta" / "info.json").read_text())
        tasks = pq.read_table(folder / "meta" / "tasks.parquet")
        self._texts = dict(zip(tasks["task_index"].to_pylist(), tasks["__index_level_0__"].to_pylist(), strict=True))
        data = ds.dataset(folder / "data", format="parquet")
        rows = data.to_table(columns=[*_COLUMNS, _CAMERA]).to_pylist()
        self._tokenizer = build_tokenizer()
        chosen = [number for number, row in enumerate(rows) if row["is_keyframe"]]
        samples = [self._sample(rows, number) for number in chosen]
        self._tensors = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def __len__(self) -> int:
        return len(self._tensors["state"])

    def batches(self, size: int, seed: int) -> Iterator[dict[str, torch.Tensor]]:
        """Batches without end, each of `size` keyframes drawn anew."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            chosen = torch.randint(len(self), (size,), generator=generator)
            yield {name: tensor[chosen] for name, tensor in self._tensors.items()}

    def _sample(self, rows: list[dict[str, Any]], number: int) -> dict[str, torch.Tensor]:
        row = rows[number]
        following = [r for r in rows[number : number + HORIZON] if r["episode_index"] == row["episode_index"]]
        # Past the end of an episode its last action holds.
        actions = np.array([r["action"] for r in [*following, *[following[-1]] * (HORIZON - len(following))]])
        with Image.open(io.BytesIO(row[_CAMERA]["bytes"])) as opened:
            pixels = np.asarray(opened.convert("RGB").resize((IMAGE_SIDE_PX, IMAGE_SIDE_PX)), np.float32)
        text = self._tokenizer.encode(self._texts[row["task_index"]]).ids[:TEXT_TOKENS]
        tokens = torch.tensor([IMAGE_TOKEN_ID] * PATCHES + text + [0] * (TEXT_TOKENS - len(text)))
        return {
            "images": torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1).unsqueeze(0),
            "tokens": tokens,
            "mask": (torch.arange(PATCHES + TEXT_TOKENS) < PATCHES + len(text)).long(),
            "state": torch.from_numpy((np.array(row["observation.state"]) - STATE_MEAN) / STATE_STD).float(),
            "actions": torch.from_numpy((actions - ACTION_MEAN) / ACTION_STD).float(),
        }


def finetune(
    model: PI0ForConditionalGeneration,
    frames: Frames,
    *,
    steps: int,
    batch: int = 32,
    rate: float = 1e-4,
    seed: int = 0,
) -> list[float]:
    """Train on; the flow loss of each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=1e-4)
    torch.manual_seed(seed)
    model.train()
    losses = []
    for _, samples in zip(range(steps), frames.batches(batch, seed), strict=False):
        loss, _ = flow_loss(model, samples)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, required=True, help="folder of `vlastream export lerobot`")
    parser.add_argument("--policy", type=Path, default=POLICY_FOLDER, help="where it goes on from (%(default)s)")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    frames = Frames(arguments.dataset)
    model = PI0ForConditionalGeneration.from_pretrained(arguments.policy)
    losses = finetune(model, frames, steps=arguments.steps)
    tenth = max(1, len(losses) // 10)
    print(
        f"{len(frames)} keyframes, {arguments.steps} steps: flow loss {np.mean(losses[:tenth]):.4f} at first, "
        f"{np.mean(losses[-tenth:]):.4f} at last"
    )
    save(model, arguments.out)


if __name__ == "__main__":
    main()
