"""Reports: Markdown for people, JSON for programs, plots beside them."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.devices import SIMULATED
from benchmarks.goals import VLLM_OMNI_P50_MS, Verdict, largest_rss_mb
from benchmarks.layers import Quantiles
from benchmarks.machine import Machine
from benchmarks.measure import DEADLINE_MS, WARM_UP_SHARE, Measured

RESULTS = Path(__file__).resolve().parent / "results"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def heading(title: str, machine: Machine, command: Sequence[str], notes: Sequence[str] = ()) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    lines = [
        f"# {title}",
        "",
        f"Command: `{shlex.join(command)}`. {machine.date}, commit {machine.commit or 'unknown'}.",
        f"Machine: {machine.cores} cores of {machine.cpu}, {machine.memory_gib:g} GiB, {machine.system}; load average "
        f"before the run {machine.load_before:g}.",
        f"Python {machine.python}, {versions}.",
        *notes,
    ]
    return "\n".join(lines)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    rows = [(v.goal, v.measured, "met" if v.met else "**not met**") for v in verdicts]
    return table(("goal", "measured", ""), rows)


def markdown(results: Sequence[Measured], verdicts: Sequence[Verdict], head: str, plots: Sequence[str]) -> str:
    parts = [
        head,
        f"Latency counts from when a request was due (open loop); the first {WARM_UP_SHARE:.0%} of each run are not "
        f"counted. Everything, the load generator included, shares the cores. A {SIMULATED} computes nothing and takes "
        "the time of a published table.",
        "## Goals\n\n" + verdict_table(verdicts) if verdicts else "",
        "## Load and latency\n\n" + _latency_table(results),
        "## Layers, p50 (p99), ms\n\n"
        f"Each column is the latency up to and with that layer. vLLM-Omni publishes {VLLM_OMNI_P50_MS} ms p50 besides "
        "the model, without a log, gates or keys, with frames that need no decoding.\n\n" + _layer_table(results),
        "## Stages, p50 / p99, ms\n\n" + _stage_tables(results),
        "## Batches\n\n" + _batch_table(results),
        "## CPU time for each request, ms\n\n" + _cpu_table(results),
        "## Memory\n\n" + _memory_table(results),
        "\n".join(f"![{name}]({name})" for name in plots),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def save(name: str, text: str, document: Mapping[str, Any], folder: Path) -> Path:
    """Write `<name>.md` and `<name>.json`; returns the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1, default=_plain) + "\n")
    path = folder / f"{name}.md"
    path.write_text(text)
    return path


def document(results: Sequence[Measured], verdicts: Sequence[Verdict], machine: Machine, command: Sequence[str]) -> Any:
    runs = [{k: v for k, v in dataclasses.asdict(result).items() if k != "latencies_ms"} for result in results]
    return {"machine": machine, "command": list(command), "goals": verdicts, "runs": runs}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _latency_table(results: Sequence[Measured]) -> str:
    head = (
        "run",
        "offered",
        "by",
        "answered",
        "/s",
        "p50 ms",
        "p95",
        "p99",
        f"within {DEADLINE_MS:.0f} ms",
        "sent late p99",
    )
    rows = []
    for r in results:
        refused = ", ".join(f"{count} {code}" for code, count in r.codes.items() if code != "ok")
        answered = f"{r.answered} of {r.requests}" + (f" ({refused})" if refused else "")
        rows.append(
            (
                r.scenario.name,
                r.scenario.offered,
                r.scenario.transport,
                answered,
                f"{r.rate:.1f}",
                *_three(r.latency),
                f"{r.within_deadline:.1%}",
                f"{r.late_send.p99:.1f}" if r.late_send else "-",
            )
        )
    return table(head, rows)


def _layer_table(results: Sequence[Measured]) -> str:
    shown = [r for r in results if r.cumulative and r.scenario.hz is not None]
    head = ("run", *(shown[0].cumulative if shown else ()), "besides the model")
    rows = [
        (r.scenario.name, *(_two(q) for q in r.cumulative.values()), _two(r.besides_model) if r.besides_model else "-")
        for r in shown
    ]
    return table(head, rows)


def _stage_tables(results: Sequence[Measured]) -> str:
    parts = []
    for transport in ("rest", "direct"):
        shown = [r for r in results if r.stages and r.scenario.transport == transport]
        if shown:
            head = ("stage", *(r.scenario.name for r in shown))
            rows = [
                (name, *(f"{r.stages[name].p50:.2f} / {r.stages[name].p99:.2f}" for r in shown))
                for name in shown[0].stages
            ]
            parts.append(table(head, rows))
    return "\n\n".join(parts)


def _batch_table(results: Sequence[Measured]) -> str:
    rows = []
    for r in results:
        requests = sum(size * count for size, count in r.batches.items())
        batches = sum(r.batches.values())
        mean = f"{requests / batches:.1f}" if batches else "-"
        sizes = ", ".join(f"{count} x {size}" for size, count in r.batches.items())
        rows.append((r.scenario.name, mean, sizes))
    return table(("run", "mean size", "batches"), rows)


def _cpu_table(results: Sequence[Measured]) -> str:
    """What bounds the rate: a second of CPU on each core, shared by all of these."""
    roles = list(dict.fromkeys(role for r in results for role in r.cpu_ms))
    rows = [
        (r.scenario.name, *(f"{r.cpu_ms[role]:.1f}" if role in r.cpu_ms else "-" for role in roles)) for r in results
    ]
    totals = [f"{sum(r.cpu_ms.values()):.1f}" for r in results]
    return table(("run", *roles, "sum"), [(*row, total) for row, total in zip(rows, totals, strict=True)])


def _memory_table(results: Sequence[Measured]) -> str:
    rows = [(role, f"{mb:.0f}") for role, mb in largest_rss_mb(results).items()]
    return table(("role", "largest resident set, MB"), rows)


def _three(q: Quantiles | None) -> tuple[str, str, str]:
    return ("-", "-", "-") if q is None else (f"{q.p50:.1f}", f"{q.p95:.1f}", f"{q.p99:.1f}")


def _two(q: Quantiles) -> str:
    return f"{q.p50:.2f} ({q.p99:.2f})"
