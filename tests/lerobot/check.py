"""Writes a dataset (or takes one that is there), loads it with lerobot, and compares what lerobot says with info.json.

python -m tests.lerobot.check --python PATH [--dataset FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sinks.export.dataset import Query, write_dataset
from sinks.export.writing import Target
from sinks.storage import FolderStorage
from tests import factories as f
from tests.cards import cards
from tests.lake_case import LakeFolder, actions

#: Small enough for several data files.
_FILE_BYTES = 40_000


def write_example(folder: Path) -> Path:
    """Two cameras, several episodes, files and tasks, a gap."""
    lake = LakeFolder(folder / "lake")
    for number, text in enumerate(("pick up the red block", "reach the blue block", "pick up the red block")):
        for step in (0, 4, 8, 20):
            lake.ask(
                step=step,
                episode=f"episode-{number}",
                instruction=text,
                cameras=("base", "wrist"),
                at_ms=f.NOON_MS + number * 60_000 + step * 100,
                chunk=actions(8, number + step / 100),
            )
    out = folder / "dataset"
    write_dataset(lake.write(), Target(FolderStorage(out), ""), cards(), Query(), file_bytes=_FILE_BYTES)
    return out


def check(python: str, dataset: Path) -> list[str]:
    """What lerobot sees differently."""
    info = json.loads((dataset / "meta" / "info.json").read_text())
    with tempfile.TemporaryDirectory() as home:
        # lerobot must not look for a hub, nor leave anything in the user's cache.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": home}
        done = subprocess.run(
            [python, str(Path(__file__).with_name("load.py")), str(dataset.resolve())],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=600,
        )
    if done.returncode:
        return [f"lerobot ended with status {done.returncode}: what it says above tells why"]
    seen = json.loads(done.stdout.splitlines()[-1])
    told = {
        "frames": info["total_frames"],
        "length": info["total_frames"],
        "episodes": info["total_episodes"],
        "fps": info["fps"],
        "tasks": info["total_tasks"],
        "cameras": [name for name, feature in info["features"].items() if feature["dtype"] == "image"],
        "stats": sorted(info["features"]),
    }
    return [
        f"{name}: {told[name]} in info.json, lerobot sees {seen[name]}" for name in told if seen[name] != told[name]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="interpreter that has lerobot")
    parser.add_argument("--dataset", type=Path, help="of `vlastream export lerobot`; an example without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = arguments.dataset or write_example(Path(folder))
        problems = check(arguments.python, dataset)
        frames = json.loads((dataset / "meta" / "info.json").read_text())["total_frames"]
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print(f"lerobot loads {frames} frames, as many as were exported")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
