"""Runs under lerobot's interpreter, without anything of this project: what lerobot makes of a dataset, as JSON."""

import json
import sys

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset


def main(root: str) -> None:
    plain = LeRobotDataset("local/check", root=root)
    step_s = 1 / plain.fps
    ahead = LeRobotDataset("local/check", root=root, delta_timestamps={"action": [0.0, step_s, 2 * step_s]})
    seen = 0
    tasks = set()
    for batch in torch.utils.data.DataLoader(ahead, batch_size=16):
        seen += len(batch["index"])
        tasks.update(batch["task"])
        assert batch["action"].shape[1:] == (3, *plain.features["action"]["shape"])
    print(
        json.dumps(
            {
                "frames": seen,
                "length": len(plain),
                "episodes": plain.num_episodes,
                "fps": plain.fps,
                "tasks": len(tasks),
                "cameras": plain.meta.camera_keys,
                "stats": sorted(plain.meta.stats),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
