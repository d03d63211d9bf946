"""What a REST request costs besides the model, stage by stage, at one robot.

    vlastream up && python -m benchmarks.request_latency --requests 300

Closed loop: the next frame is sent when the last one is answered. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import platform
import sys
import uuid
from pathlib import Path

import httpx
import numpy as np

from examples.tabletop.expert import act
from examples.tabletop.world import TabletopWorld


def measure(stack: dict[str, str], requests: int, warm_up: int = 30) -> list[dict[str, float]]:
    """Stage timings in ms of every answered request after the warm-up; `besides model` is total less inference."""
    world = TabletopWorld(5)
    rows = []
    with httpx.Client(base_url=stack["api"], headers={"Authorization": f"Bearer {stack['api_key']}"}) as client:
        for number in range(requests + warm_up):
            if world.success or world.failed or number == 0:
                instruction = world.reset()
                episode = str(uuid.uuid4())
            jpeg, state = world.observe()
            body = {
                "robot_id": "bench-1",
                "robot_type": "tabletop_arm",
                "instruction": instruction,
                "images": [{"camera": "base", "data": base64.b64encode(jpeg).decode()}],
                "state": state.tolist(),
                "episode_id": episode,
                "step": number,
            }
            answer = client.post("/v1/inference", json=body)
            answer.raise_for_status()
            world.step(act(world.worlds)[0])
            if number >= warm_up:
                timings = answer.json()["timings_ms"]
                rows.append({**timings, "besides model": timings["total"] - timings["inference"]})
    return rows


def table(rows: list[dict[str, float]]) -> str:
    lines = ["| stage | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|"]
    for stage in rows[0]:
        p50, p95, p99 = np.percentile([row[stage] for row in rows], [50, 95, 99])
        lines.append(f"| {stage} | {p50:.2f} | {p95:.2f} | {p99:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--stack", type=Path, default=Path(".vlastream/stack.json"))
    arguments = parser.parse_args()
    rows = measure(json.loads(arguments.stack.read_text()), arguments.requests)
    print(
        f"{len(rows)} requests, one robot, {os.cpu_count()} cores, Python {platform.python_version()}, {sys.platform}\n"
    )
    print(table(rows))


if __name__ == "__main__":
    main()
