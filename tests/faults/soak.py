"""All faults, one after the other and again, for as long as one likes: `make soak`.

    python -m tests.faults.soak --minutes 30 --report .vlastream/soak

Prints a line for each fault, writes soak.md and soak.json, and ends with status 1 if a promise broke.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path
from typing import Any

from tests.e2e.running_stack import RunningStack
from tests.faults.faults import ALL, Fault
from tests.faults.play import Result, play
from tests.faults.scene import fault_stack, resident_bytes


def rounds(faults: list[Fault], minutes: float) -> Iterator[Fault]:
    """Every fault at least once, then from the start again until the time is over."""
    end = time.monotonic() + minutes * 60
    for number, fault in enumerate(cycle(faults)):
        if number >= len(faults) and time.monotonic() >= end:
            return
        yield fault


def memory_mb(stack: RunningStack) -> dict[str, float]:
    return {name: round(size / 1e6, 1) for name, size in resident_bytes(stack).items()}


def report(results: list[Result], first_mb: dict[str, float], last_mb: dict[str, float], minutes: float) -> str:
    rows = "\n".join(
        f"| {result.fault} | {result.lasted_s:.1f} | {result.silence_s:.1f} | {result.sent} "
        f"| {'held' if result.held else '**' + '; '.join(result.broken[:3]) + '**'} |"
        for result in results
    )
    memory = "\n".join(f"| {name} | {first_mb[name]:.0f} | {last_mb.get(name, 0):.0f} |" for name in first_mb)
    sent = sum(result.sent for result in results)
    return f"""# Soak: {len(results)} faults in {minutes:.0f} minutes under load

Command: `make soak`. {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores shared with the load, Python
{platform.python_version()}, {platform.system()}. {sent} requests, open loop, 8 robots at 10 requests/s together, two of
them by direct produce. {sum(result.held for result in results)} of {len(results)} faults left every promise kept.

Silence is the longest time in which some robot got no actions that it could execute, from the strike until the
load was served again.

| fault | lasted s | silence s | requests | promises |
|---|---|---|---|---|
{rows}

Resident memory with children, at the first and the last fault, MB (processes are new where a fault ended them):

| process | first | last |
|---|---|---|
{memory}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--report", type=Path, default=Path(".vlastream/soak"))
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--session-timeout-ms", type=int, help="of the consumers; default: the embedded stack's")
    arguments = parser.parse_args()
    chosen = [fault for fault in ALL if arguments.only in fault.name]
    results: list[Result] = []
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as folder,
        fault_stack(Path(folder), session_timeout_ms=arguments.session_timeout_ms) as stack,
    ):
        first_mb: dict[str, float] = {}
        for fault in rounds(chosen, arguments.minutes):
            results.append(play(stack, fault))
            print(f"{(time.monotonic() - began) / 60:5.1f} min  {results[-1].line()}", flush=True)
            first_mb = first_mb or memory_mb(stack)
        last_mb = memory_mb(stack)
    minutes = (time.monotonic() - began) / 60
    arguments.report.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "minutes": minutes,
        "results": [asdict(result) for result in results],
        "memory_mb": {"first": first_mb, "last": last_mb},
    }
    (arguments.report / "soak.json").write_text(json.dumps(content, indent=1))
    (arguments.report / "soak.md").write_text(report(results, first_mb, last_mb, minutes))
    broken = [result.fault for result in results if not result.held]
    print(f"{len(results) - len(broken)} of {len(results)} faults left every promise kept; {arguments.report}/soak.md")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
