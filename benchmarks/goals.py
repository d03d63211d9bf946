"""What the figures are held against. A goal is met or not; the reason stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.devices import SIMULATED
from benchmarks.measure import Measured

BESIDES_MODEL_P50_MS = 6.0
BESIDES_MODEL_P99_MS = 20.0
#: vLLM-Omni's published p50 besides the model (issue 6524 of its repository): no log, no gates, no auth.
VLLM_OMNI_P50_MS = 4.25
SATURATION = 0.95
SCALING = 0.95
SCALED_TO = 4
#: Largest resident set by role, MB.
RSS_MB = {"api": 150.0, "gate": 150.0, "sink postgres": 150.0, "sink parquet": 400.0}


@dataclass(frozen=True, slots=True)
class Verdict:
    goal: str
    measured: str
    met: bool


def verdicts(results: Sequence[Measured]) -> list[Verdict]:
    """Of every goal that something was measured for."""
    found: list[Verdict] = []
    for result in results:
        if result.scenario.goal == "overhead":
            found += _overhead(result)
        if result.scenario.goal == "saturation":
            found += _saturation(result)
    return found + _scaling(results) + _memory(results)


def at_least(goal: str, measured: float, target: float, unit: str) -> Verdict:
    return Verdict(f"{goal} >= {target:g} {unit}", f"{measured:.1f} {unit}", measured >= target)


def _overhead(result: Measured) -> list[Verdict]:
    if result.besides_model is None:
        return [Verdict(f"besides the model, {result.scenario.name}", "nothing was answered", False)]
    return [
        Verdict(f"besides the model, {result.scenario.name}: {name} <= {limit:g} ms", f"{value:.2f} ms", value <= limit)
        for name, value, limit in (
            ("p50", result.besides_model.p50, BESIDES_MODEL_P50_MS),
            ("p99", result.besides_model.p99, BESIDES_MODEL_P99_MS),
        )
    ]


def _saturation(result: Measured) -> list[Verdict]:
    device = result.scenario.deployment.device
    if device is None:
        return []
    share = result.rate / device.best_rate
    goal = f"{SIMULATED} {device.name}: >= {SATURATION:.0%} of its best batch, {device.best_rate:.1f}/s"
    return [Verdict(goal, f"{result.rate:.1f}/s, {share:.1%}", share >= SATURATION)]


def _scaling(results: Sequence[Measured]) -> list[Verdict]:
    single = next((r for r in results if r.scenario.goal == "saturation"), None)
    if single is None or not single.rate:
        return []
    found = []
    for result in results:
        if result.scenario.goal == "scaling" and result.scenario.deployment.workers == SCALED_TO:
            efficiency = result.rate / single.rate / SCALED_TO
            goal = f"{SCALED_TO} consumers on {SIMULATED}s: efficiency >= {SCALING:.0%}"
            measured = f"{result.rate:.1f}/s of {SCALED_TO} x {single.rate:.1f}/s, {efficiency:.1%}"
            found.append(Verdict(goal, measured, efficiency >= SCALING))
    return found


def _memory(results: Sequence[Measured]) -> list[Verdict]:
    largest = largest_rss_mb(results)
    return [
        Verdict(f"resident set, {role} <= {limit:g} MB", f"{largest[role]:.0f} MB", largest[role] <= limit)
        for role, limit in RSS_MB.items()
        if role in largest
    ]


def largest_rss_mb(results: Sequence[Measured]) -> dict[str, float]:
    """Role -> the largest resident set seen after any scenario, MB."""
    largest: dict[str, float] = {}
    for result in results:
        for role, mb in result.rss_mb.items():
            largest[role] = max(largest.get(role, 0.0), mb)
    return largest
