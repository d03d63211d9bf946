"""The tabletop policy learns from an exported dataset."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples.tabletop.finetune import Frames, finetune
from examples.tabletop.train import HORIZON, IMAGE_SIDE_PX, build_model
from sinks.export.dataset import Query, write_dataset
from sinks.export.writing import Target
from sinks.storage import FolderStorage
from tests import factories as f
from tests.cards import cards
from tests.lake_case import LakeFolder, actions


@pytest.fixture
def frames(tmp_path: Path) -> Frames:
    lake = LakeFolder(tmp_path / "lake")
    for episode in range(2):
        for step in range(0, 24, 4):
            lake.ask(
                step=step,
                episode=f"episode-{episode}",
                at_ms=f.NOON_MS + step * 100,
                chunk=actions(8, 0.02 * episode),
                state=(0.5, 0.5, 0.2, 0, 0, 0, 0.02, 0.02),
            )
    write_dataset(lake.write(), Target(FolderStorage(tmp_path / "dataset"), ""), cards(), Query())
    return Frames(tmp_path / "dataset")


def test_each_keyframe_comes_with_its_image_and_the_actions_that_followed(frames: Frames) -> None:
    assert len(frames) == 12
    batch = next(frames.batches(4, seed=0))
    assert batch["images"].shape == (4, 1, 3, IMAGE_SIDE_PX, IMAGE_SIDE_PX)
    assert batch["actions"].shape == (4, HORIZON, 7)
    assert float(batch["images"].abs().max()) <= 1


def test_some_steps_from_an_export_bring_the_loss_down(frames: Frames) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    losses = finetune(build_model(), frames, steps=16, batch=8, rate=2e-3)
    assert np.isfinite(losses).all()
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
