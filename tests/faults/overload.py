"""Ten times the load that is served, for minutes: who is refused, what becomes of the rest, and what memory it takes.

    python -m tests.faults.overload --minutes 5 --report .vlastream/overload.md

Writes the table of memory by role; ends with status 1 if a promise broke or a goal was missed.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.e2e.running_stack import RunningStack
from tests.faults.flood import FRAME_BYTES, TTL_S, Flood, Tally, key_of_another_customer
from tests.faults.scene import Scene, resident_bytes

#: How many times as much is sent as is served.
TIMES = 10
#: What the goals say, MB; a role that is not named has none.
GOALS_MB = {"api": 150, "gate": 150, "sink postgres": 150, "sink parquet": 400}
#: Beyond this a role has grown between the first minute and the last.
_GROWTH_SHARE, _GROWTH_MB = 0.05, 4.0
_SERVERS = ("kafka", "postgres", "valkey", "s3")
_PROBE_HZ, _PROBE_S = 60.0, 12.0
_PERIOD_S = 1.0


class MemoryWatch:
    """Resident memory of every process, once a second."""

    def __init__(self, stack: RunningStack) -> None:
        #: Process -> (seconds since the start, MB).
        self.samples: dict[str, list[tuple[float, float]]] = defaultdict(list)
        self._stack = stack
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory watch", daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._started = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            at_s = time.monotonic() - self._started
            for name, size in resident_bytes(self._stack).items():
                self.samples[name].append((at_s, size / 1e6))
            if self._stop.wait(_PERIOD_S):
                return

    def around(self, name: str, at_s: float) -> float:
        """Median of the ten seconds that end then, MB."""
        return statistics.median(mb for sampled_s, mb in self.samples[name] if at_s - 10 <= sampled_s <= at_s + 0.5)

    def peak(self, name: str) -> float:
        return max(mb for _, mb in self.samples[name])


@dataclass(frozen=True)
class Growth:
    """Of one process, MB: before the flood, after a minute of it, at its end, and the most."""

    name: str
    before: float
    minute: float
    end: float
    peak: float

    @property
    def role(self) -> str:
        return self.name.rpartition(" ")[0]

    @property
    def flat(self) -> bool:
        return self.end <= self.minute * (1 + _GROWTH_SHARE) + _GROWTH_MB

    @property
    def goal_mb(self) -> int | None:
        return GOALS_MB.get(self.role)

    @property
    def within(self) -> bool:
        return self.goal_mb is None or self.peak <= self.goal_mb


@dataclass
class Overload:
    """A fault: `strike` floods the system for so long, while the load of other customers goes on."""

    seconds: float
    sustained_hz: float = 0.0
    offered_hz: float = 0.0
    tally: Tally = field(default_factory=Tally)
    memory: list[Growth] = field(default_factory=list)

    def strike(self, scene: Scene) -> None:
        key, ledger = key_of_another_customer(scene.stack), scene.load.ledger
        before = {name: size / 1e6 for name, size in resident_bytes(scene.stack).items()}
        with Flood(scene.stack, ledger, key, rate_hz=_PROBE_HZ) as probe:
            time.sleep(_PROBE_S / 2)
            served = probe.tally.served
            time.sleep(_PROBE_S / 2)
            self.sustained_hz = (probe.tally.served - served) / (_PROBE_S / 2)
        assert self.sustained_hz > 0, f"nothing was served: {probe.tally}"
        with (
            MemoryWatch(scene.stack) as watch,
            Flood(scene.stack, ledger, key, rate_hz=TIMES * self.sustained_hz) as flood,
        ):
            time.sleep(self.seconds)
            self.offered_hz = flood.tally.total / self.seconds
        self.tally = flood.tally
        minute_s = min(60.0, self.seconds / 2)
        self.memory = [
            Growth(name, mb, watch.around(name, minute_s), watch.around(name, self.seconds), watch.peak(name))
            for name, mb in before.items()
        ]
        assert not self.tally.wrong, f"{len(self.tally.wrong)} wrong answers: {self.tally.wrong[:3]}"
        refused = sum(count for (status, _), count in self.tally.answers.items() if status in (429, 503))
        assert refused > self.tally.served, f"that was no overload: {self.tally.answers}"

    @property
    def grown(self) -> list[Growth]:
        """Roles whose memory was not flat. In less than three minutes nothing can be said of it."""
        roles = [one for one in self.memory if one.role not in _SERVERS]
        return [one for one in roles if not one.flat] if self.seconds >= 180 else []

    @property
    def too_large(self) -> list[Growth]:
        return [one for one in self.memory if not one.within]


def report(overload: Overload, verdict: str) -> str:
    rows = "\n".join(
        f"| {one.name} | {one.before:.0f} | {one.minute:.0f} | {one.end:.0f} | {one.peak:.0f} | {_judged(one)} |"
        for one in overload.memory
    )
    answers = "\n".join(
        f"| {status} | {code or 'actions'} | {count} |"
        for (status, code), count in sorted(overload.tally.answers.items())
    )
    minutes = overload.seconds / 60
    return f"""# Overload: {TIMES} times what is served, for {minutes:g} minutes

Command: `python -m tests.faults.overload --minutes {minutes:g}`. {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores
shared with the load, Python {platform.python_version()}, {platform.system()}. Two gates, two GPU workers whose batch of
n takes 10 x (15 + 5n) ms, one API, one of each sink, everything by default; frames of {FRAME_BYTES // 1000} KB,
{TTL_S:g} s to live.

{overload.sustained_hz:.0f} requests/s were served of {_PROBE_HZ:.0f} offered; then {overload.offered_hz:.0f}/s were
answered, open loop, to one customer, while eight robots of another one sent 10/s. {verdict}

| status | code | answers |
|---|---|---|
{answers}

Resident memory with children, MB: before, after the first minute, at the end, the most of any second. Flat: not more
than {_GROWTH_SHARE:.0%} and {_GROWTH_MB:.0f} MB between the first minute and the end.

| process | before | 1 min | {minutes:g} min | peak | goal |
|---|---|---|---|---|---|
{rows}
"""


def _judged(one: Growth) -> str:
    if one.role in _SERVERS:
        return "-"
    size = f"<= {one.goal_mb}: {'met' if one.within else 'not met'}, " if one.goal_mb is not None else ""
    return f"{size}flat: {'met' if one.flat else 'not met'}"


def main() -> int:
    # Both play on what this module is a part of.
    from tests.faults.faults import Fault
    from tests.faults.play import play
    from tests.faults.scene import fault_stack

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--report", type=Path, default=Path(".vlastream/overload.md"))
    arguments = parser.parse_args()
    overload = Overload(arguments.minutes * 60)
    with tempfile.TemporaryDirectory() as folder, fault_stack(Path(folder)) as stack:
        result = play(stack, Fault("overload", overload.strike))
    print(result.line())
    verdict = "Every promise held." if result.held else f"**Broken: {'; '.join(result.broken[:3])}**"
    arguments.report.parent.mkdir(parents=True, exist_ok=True)
    arguments.report.write_text(report(overload, verdict))
    print(arguments.report.read_text())
    return 0 if result.held and not overload.too_large else 1


if __name__ == "__main__":
    sys.exit(main())
