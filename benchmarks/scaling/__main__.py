"""`python -m benchmarks.scaling`: a wave of load on GPU consumers that KEDA's formula adds and drains.

Writes benchmarks/results/<date>-scaling.{json,md} and the plot docs/scaling.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import machine, report
from benchmarks.devices import SIMULATED
from benchmarks.scaling import plot
from benchmarks.scaling.scaled_object import ScaledObject, of_simulated
from benchmarks.scaling.wave import DEVICE, TTL_MS, Phase, Run, play
from runtime.settings import Settings

#: Low, high, low; with the defaults 160 s, and however long the way back down takes.
PHASES = (Phase(20, 2), Phase(80, 18), Phase(60, 2))
FASTER = 20.0
_PLOT = Path(__file__).resolve().parents[2] / "docs" / "scaling.png"


def say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--faster", type=float, default=FASTER, help="times that the manifest's durations are shorter")
    parser.add_argument("--high", type=float, default=PHASES[1].rate_hz, help="requests/s at the top of the wave")
    parser.add_argument("--plot", type=Path, default=_PLOT)
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="folder of the report")
    options = parser.parse_args()
    here = machine.describe()
    spec = of_simulated(DEVICE, partitions=Settings(_env_file=None).kafka_accepted_partitions).faster(options.faster)
    phases = (PHASES[0], dataclasses.replace(PHASES[1], rate_hz=options.high), PHASES[2])
    with tempfile.TemporaryDirectory() as folder:
        run = play(phases, spec, folder=Path(folder) / "stack", say=say)
    plot.draw(run, spec, options.plot)
    command = ["python", "-m", "benchmarks.scaling", *sys.argv[1:]]
    text = markdown(run, spec, report.heading("Consumers that follow the lag", here, command), options.faster)
    say("\n" + text)
    saved = report.save(f"{here.date}-scaling", text, document(run, spec, here, command), options.out)
    say(f"saved: {saved}, its .json and {options.plot}")
    return 1 if run.faults() else 0


def markdown(run: Run, spec: ScaledObject, head: str, faster: float) -> str:
    took_ms = np.array([request.latency_ms for request in run.requests if request.ok])
    p50, p95, p99 = np.percentile(took_ms, (50, 95, 99))
    changes = [(run.samples[0].at_s, run.samples[0].desired)]
    for sample in run.samples:
        if sample.desired != changes[-1][1]:
            changes.append((sample.at_s, sample.desired))
    steps = ", ".join(f"{replicas} at {at_s - run.began_s:.0f} s" for at_s, replicas in changes)
    load = ", ".join(f"{phase.rate_hz:g}/s for {phase.seconds:g} s" for phase in run.phases)
    served = ", ".join(str(count) for count in sorted(run.served.values(), reverse=True))
    rows = [
        ("offered, open loop", load),
        ("requests, all answered with actions" if not run.faults() else "requests", str(len(run.requests))),
        ("replicas wanted", steps),
        ("most consumers ready at a time", str(run.peak)),
        ("requests served by each consumer", served),
        ("most lag, records", str(max(sample.lag for sample in run.samples))),
        ("latency p50 / p95 / p99, s", f"{p50 / 1000:.2f} / {p95 / 1000:.2f} / {p99 / 1000:.2f}"),
        ("outcome records repeated", str(run.books.repeated_outcomes)),
        ("books", "balanced" if run.books.balanced else "**not balanced**"),
    ]
    return "\n".join(
        [
            head,
            "",
            f"Each consumer has a {SIMULATED}: a batch of n takes {DEVICE.per_item_ms:g} ms x n + "
            f"{DEVICE.base_ms:g} ms, so {DEVICE.best_rate:g} requests/s at most. Half of the robots ask over REST, "
            f"half produce to Kafka; each request may take {TTL_MS / 1000:g} s. The ScaledObject is production's "
            f"first, with what its rules give for this device: `lagThreshold` {spec.lag_threshold}, "
            f"{spec.min_replica_count} to {spec.max_replica_count} replicas. All its durations are divided by "
            f"{faster:g}.",
            "",
            report.table(("", ""), rows),
            "",
            *([f"**{fault}**" for fault in run.faults()] or ["No request was lost, doubled or left over."]),
            "",
            "![the wave](../../docs/scaling.png)",
            "",
        ]
    )


def document(run: Run, spec: ScaledObject, here: machine.Machine, command: list[str]) -> dict[str, object]:
    requests = [
        f"{one.due_s - run.began_s:.3f} {one.done_s - run.began_s:.3f} {one.answer.code}" for one in run.requests
    ]
    samples = [{**dataclasses.asdict(sample), "at_s": round(sample.at_s - run.began_s, 2)} for sample in run.samples]
    return {
        "machine": here,
        "command": shlex.join(command),
        "scaled_object": spec.model_dump(by_alias=True),
        "phases": run.phases,
        "samples": samples,
        "requests_due_done_code": requests,
        "served": sorted(run.served.values(), reverse=True),
        "books": run.books,
        "faults": run.faults(),
    }


if __name__ == "__main__":
    sys.exit(main())
