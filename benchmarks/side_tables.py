"""Tables and verdicts of a side by side run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks import report
from benchmarks.measure import DEADLINE_MS

OURS = "vlastream, REST"
OPENPI = "openpi websocket_policy_server"
#: From so many clients up ours is to be ahead of every peer; at one client within this factor of openpi's latency.
AHEAD_FROM, NEAR_OPENPI = 4, 1.15


@dataclass(frozen=True, slots=True)
class Row:
    """One server at one number of clients. Milliseconds; rate in inferences a second."""

    server: str
    clients: int
    rate: float
    p50_ms: float
    p99_ms: float
    within_deadline: float
    failed: int
    #: machine.pace_ms right before: rows whose paces differ were not measured on the same machine, so to say.
    pace_ms: float = 0.0
    #: Of ours: the median of every stage, and how many batches of each size there were.
    stages_ms: Mapping[str, float] = field(default_factory=dict)
    batches: Mapping[int, int] = field(default_factory=dict)


def markdown(rows: Sequence[Row], raw: Mapping[int, float], head: str) -> str:
    limits = report.table(("batch", "inferences/s"), [(str(size), f"{rate:.1f}") for size, rate in raw.items()])
    alone = "## The policy alone, in a loop\n\n" + limits if raw else ""
    body = [
        (
            str(row.clients),
            row.server,
            f"{row.rate:.1f}",
            f"{row.p50_ms:.1f}",
            f"{row.p99_ms:.1f}",
            f"{row.within_deadline:.1%}",
            str(row.failed or ""),
            f"{row.pace_ms:.1f}",
        )
        for row in sorted(rows, key=lambda row: row.clients)
    ]
    columns = (
        "clients",
        "server",
        "inferences/s",
        "p50 ms",
        "p99 ms",
        f"within {DEADLINE_MS:.0f} ms",
        "failed",
        "machine, ms",
    )
    parts = [head, alone, "## Servers\n\n" + report.table(columns, body), _verdicts(rows), _stages(rows)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _verdicts(rows: Sequence[Row]) -> str:
    """Ours against the best of the others, where both were measured."""
    by = {(row.server, row.clients): row for row in rows}
    lines = []
    for count in sorted({row.clients for row in rows}):
        ours = by.get((OURS, count))
        others = [row for row in rows if row.clients == count and row.server != OURS]
        if ours is None or not others:
            continue
        if count >= AHEAD_FROM:
            best = max(others, key=lambda row: row.rate)
            met = "met" if ours.rate > best.rate else "**not met**"
            measured = f"{ours.rate:.1f}/s, best of the others {best.rate:.1f}/s ({best.server})"
            lines.append((f"ahead of every peer at {count} clients", measured, met))
        openpi = by.get((OPENPI, count))
        if count == 1 and openpi is not None:
            ratio = ours.p50_ms / openpi.p50_ms
            met = "met" if ratio <= NEAR_OPENPI else "**not met**"
            measured = f"p50 {ours.p50_ms:.1f} ms, {ratio - 1:+.0%} of {openpi.p50_ms:.1f} ms"
            lines.append(("one client: within 15 % of openpi's latency", measured, met))
    return "## Goals\n\n" + report.table(("goal", "measured", ""), lines) if lines else ""


def _stages(rows: Sequence[Row]) -> str:
    """Where ours spends its time."""
    shown = [row for row in rows if row.stages_ms]
    if not shown:
        return ""
    lines = [(name, *(f"{row.stages_ms[name]:.2f}" for row in shown)) for name in shown[0].stages_ms]
    lines.append(("batches", *(", ".join(f"{n} of {size}" for size, n in row.batches.items()) for row in shown)))
    columns = ("stage", *(f"{row.clients} clients" for row in shown))
    return "## Where ours spends its time, p50, ms\n\n" + report.table(columns, lines)
