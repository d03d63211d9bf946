"""How many requests a second one gate process decides, both agents and every rule on.

    python -m benchmarks.gate_rate

A backlog of requests is produced at once; the rate is that of the gate's own marks. A simulated device without service
time answers. As all processes share the machine, the CPU time that the gate spends on a request is reported too: its
reciprocal is what a gate with a core of its own can do at most.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil

from benchmarks import frames, goals, machine, report
from benchmarks.direct import DirectClients
from benchmarks.outcome_log import OutcomeLog
from benchmarks.own_stack import Target, own_stack
from benchmarks.scenarios import instant
from schemas.messages import StageTimes

GOAL_PER_S = 200.0
_ACK_METRIC = "vla_produce_duration_seconds"


def main() -> int:
    options = _parser().parse_args()
    here = machine.describe()
    deployment = instant()
    pictures = frames.views(8, 1, options.frame_bytes)
    with own_stack((deployment,), say, without=("sink postgres", "sink parquet")) as target:
        log = OutcomeLog(target.settings)
        gate = [process["pid"] for process in target.document["processes"] if process["role"] == "gate"]
        if len(gate) != 1:
            raise RuntimeError(f"{len(gate)} gates run, one is to be measured")
        before_s = _cpu_s(gate[0])
        say(f"producing {options.requests} requests")
        ids = asyncio.run(_produce(target, deployment.model, pictures, options.requests))
        times = list(log.read(ids, timeout_s=options.timeout).values())
        spent_ms = (_cpu_s(gate[0]) - before_s) * 1000 / max(len(times), 1)
        waits_ms = _ack_waits_ms(target)
    if len(times) < len(ids):
        say(f"{len(ids) - len(times)} of {len(ids)} requests have no outcome after {options.timeout:g} s")
    name = options.name or f"{here.date}-gate-rate"
    text, document = _report(times, spent_ms, waits_ms, options, here)
    say("\n" + text)
    say(f"saved: {report.save(name, text, document, options.out)}")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


async def _produce(target: Target, model: str, pictures: list[frames.View], count: int) -> list[str]:
    """Request ids, once a request has come back and all others are on their way."""
    bootstrap = target.settings.kafka_bootstrap_servers
    async with DirectClients(bootstrap, fleet=target.fleet, model=model, views=pictures, ttl_ms=60_000) as clients:
        await asyncio.wait_for(clients.send(0, 0), 30.0)
        ids = []
        for number in range(count):
            ids.append(frames.new_request_id())
            clients.produce(ids[-1], robot=number % 50, step=1 + number // 50)
        return ids


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _ack_waits_ms(target: Target) -> dict[str, float]:
    """Topic -> mean time until the broker acknowledged what the gate sent there, by the gate's own metrics."""
    url = next(process["metrics"] for process in target.document["processes"] if process["role"] == "gate")
    sums: dict[str, dict[str, float]] = {"sum": {}, "count": {}}
    for line in httpx.get(url, timeout=5.0, trust_env=False).text.splitlines():
        for kind, found in sums.items():
            if line.startswith(f"{_ACK_METRIC}_{kind}{{"):
                labels, value = line.rsplit(" ", 1)
                found[labels.split('topic="', 1)[1].split('"', 1)[0]] = float(value)
    return {topic: total / sums["count"][topic] * 1000 for topic, total in sums["sum"].items() if sums["count"][topic]}


def _rate(marks_us: list[int]) -> float:
    """Marks a second, of the middle four fifths: neither the start nor the tail."""
    ordered = np.sort(marks_us)
    low, high = len(ordered) // 10, len(ordered) - len(ordered) // 10 - 1
    return float((high - low) / max((ordered[high] - ordered[low]) / 1e6, 1e-9))


def _report(
    times: list[StageTimes],
    spent_ms: float,
    waits_ms: dict[str, float],
    options: argparse.Namespace,
    here: machine.Machine,
) -> tuple[str, dict[str, Any]]:
    rules_ms = [(t.gate_end_us - t.gate_start_us) / 1000 for t in times]
    actions_ms = [(t.action_gate_end_us - t.action_gate_start_us) / 1000 for t in times]
    rate = _rate([t.gate_end_us for t in times])
    done = _rate([t.action_gate_end_us for t in times])
    verdicts = [
        goals.at_least("one gate process, all rules on, sharing the machine", rate, GOAL_PER_S, "requests/s"),
        goals.at_least("by the gate's own CPU time", 1000 / spent_ms, GOAL_PER_S, "requests/s"),
    ]
    figures = {
        "requests": len(times),
        "accepted_per_s": rate,
        "decided_per_s": done,
        "gate_cpu_ms": spent_ms,
        "request_agent_ms_p50": float(np.median(rules_ms)),
        "action_agent_ms_p50": float(np.median(actions_ms)),
        "ack_wait_ms": waits_ms,
    }
    rows = [
        ("requests", f"{len(times)}"),
        ("request agent, requests/s", f"{rate:.1f}"),
        ("both agents, outcomes/s", f"{done:.1f}"),
        ("CPU of the gate for each request, ms", f"{spent_ms:.2f}"),
        ("request agent, p50 from start to end, ms", f"{figures['request_agent_ms_p50']:.2f}"),
        ("action agent, p50 from start to end, ms", f"{figures['action_agent_ms_p50']:.2f}"),
        *((f"mean wait for the acknowledgement of {topic}, ms", f"{wait:.2f}") for topic, wait in waits_ms.items()),
    ]
    command = ["python", "-m", "benchmarks.gate_rate", *sys.argv[1:]]
    head = report.heading("One gate process", here, command, [f"Frames: JPEG, {options.frame_bytes} bytes, 640x480."])
    text = "\n\n".join([head, report.table(("", ""), rows), report.verdict_table(verdicts)]) + "\n"
    return text, {"machine": here, "figures": figures, "goals": verdicts}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--frame-bytes", type=int, default=50_000)
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the outcomes")
    parser.add_argument("--out", type=Path, default=report.RESULTS)
    parser.add_argument("--name", help="file name of the report, without ending")
    return parser


if __name__ == "__main__":
    sys.exit(main())
