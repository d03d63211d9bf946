"""`python -m benchmarks.capacity`: how large a fleet the parts carry, where each saturates, and what one adds then."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt

from benchmarks import machine
from benchmarks.capacity_model import Fleet, Inputs, Run, load_inputs, simulate, spread
from benchmarks.devices import SIMULATED
from benchmarks.report import RESULTS, heading, table

mpl.use("Agg")
INPUTS = Path(__file__).resolve().parent / "capacity.yaml"
#: Share of the planned fleet that each simulated run has.
_SWEEP = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.2, 1.3, 1.5)
_DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Point:
    """One simulated run."""

    fleet: Fleet
    run: Run


#: Servers of each part, and the run on them.
Grown = tuple[Mapping[str, int], Point]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=Path, default=INPUTS)
    parser.add_argument("--seconds", type=float, default=16.0, help="simulated seconds of each run")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    inputs = load_inputs(options.inputs)
    here = machine.describe(("simpy", "numpy", "matplotlib"))
    planned, servers = inputs.fleet, inputs.installed(inputs.fleet)
    points = []
    for share in _SWEEP:
        fleet = dataclasses.replace(planned, robots=round(planned.robots * share))
        points.append(Point(fleet, simulate(inputs, fleet, servers, options.seconds)))
        print(_line(points[-1]), flush=True)
    largest = points[-1].fleet
    grown = []
    for counts in ({**inputs.installed(largest), "gpu": servers["gpu"]}, inputs.installed(_enough(inputs, largest))):
        fleet = dataclasses.replace(largest, gpus=counts["gpu"])
        grown.append((counts, Point(fleet, simulate(inputs, fleet, counts, options.seconds))))
        print(f"{_line(grown[-1][1])}, with {fleet.gpus} gpus and the rest resized", flush=True)
    dealt = Point(planned, simulate(inputs, planned, servers, options.seconds, dealt=True))
    print(_line(dealt) + ", robots dealt evenly", flush=True)
    name = f"{here.date}-capacity"
    options.out.mkdir(parents=True, exist_ok=True)
    draw(inputs, servers, points, options.out / f"{name}.png")
    command = ["python", "-m", "benchmarks.capacity", *(arguments or [])]
    head = heading(f"Capacity: {planned.robots:,} robots on {planned.gpus} GPUs, {SIMULATED}s", here, command)
    text = "\n\n".join([head, *_sections(inputs, servers, points, grown, dealt), f"![capacity]({name}.png)"]) + "\n"
    (options.out / f"{name}.md").write_text(text, encoding="utf-8")
    (options.out / f"{name}.json").write_text(
        json.dumps(_document(inputs, servers, points, grown, dealt), indent=1) + "\n"
    )
    print(f"saved: {options.out / name}.md, .png and .json")
    return 0


def draw(inputs: Inputs, servers: Mapping[str, int], points: Sequence[Point], path: Path) -> None:
    """Latency and utilisation against the number of robots."""
    robots = [point.fleet.robots for point in points]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(9.0, 8.0), sharex=True, layout="constrained")
    for quantile, style in ((0.5, "o-"), (0.95, "s--"), (0.99, "^:")):
        top.plot(robots, [p.run.latency_ms(quantile) for p in points], style, label=f"p{quantile * 100:.0f}")
    top.axhline(inputs.fleet.ttl_ms, color="tab:gray", linestyle=":", label="deadline")
    top.set(ylabel="latency of answered requests, ms", ylim=(0, None))
    share = top.twinx()
    share.plot(robots, [p.run.answered_share * 100 for p in points], "k-", alpha=0.5)
    share.set(ylabel="answered before the deadline, % (black)", ylim=(0, 105))
    top.set_title(
        f"{inputs.fleet.gpus} {SIMULATED}s ({inputs.device.name}), {inputs.fleet.hz:g} requests/s a robot, "
        f"{inputs.figures['frame_bytes'] / 1000:g} KB frames",
        fontsize=10,
    )
    for part in inputs.parts():
        mean = [float(np.mean(p.run.loads[part.name])) * 100 for p in points]
        bottom.plot(robots, mean, "o-", label=f"{part.name}, {servers[part.name]}")
    best = inputs.fleet.gpus * inputs.device.best_rate
    bottom.plot(robots, [p.fleet.requests_s / best * 100 for p in points], "k:", label="asked of the gpus' best batch")
    bottom.axhline(100, color="tab:gray", linestyle=":")
    bottom.axvline(inputs.fleet.robots, color="tab:gray", linestyle="--", linewidth=0.8)
    bottom.set(xlabel=f"robots (requests/s = robots x {inputs.fleet.hz:g})", ylabel="utilisation, %", ylim=(0, None))
    for axes in (top, bottom):
        axes.grid(visible=True, alpha=0.3)
        axes.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _enough(inputs: Inputs, fleet: Fleet) -> Fleet:
    """The fleet with as many GPUs as keep them at the planned load."""
    gpu = next(part for part in inputs.parts() if part.name == "gpu")
    return dataclasses.replace(fleet, gpus=gpu.needed(fleet.requests_s, fleet.planned_load))


def _sections(
    inputs: Inputs, servers: Mapping[str, int], points: Sequence[Point], grown: Sequence[Grown], dealt: Point
) -> list[str]:
    planned, device = inputs.fleet, inputs.device
    at_plan = next(p for p in points if p.fleet.robots == planned.robots)
    counts = spread(planned.robots, planned.gpus, planned.partitions_a_gpu)
    unsized = [part for part in inputs.parts() if part.name not in ("gpu", "gpu host")]
    return [
        f"**Every device here is a {SIMULATED}**: a batch of n takes {device.per_item_ms:.2f} ms x n + "
        f"{device.base_ms:.2f} ms, fitted to a published table ({device.source}). The batches are formed by the "
        "product's own BatchQueue and CostModel in simulated time; robots are placed on partitions by Kafka's murmur2 "
        "of their key.",
        f"## What {planned.robots:,} robots at {planned.hz:g}/s each demand\n\n{_traffic(inputs)}",
        "## Parts\n\n"
        + _parts(inputs, servers)
        + f"\n\nSized for a load of {planned.planned_load:.0%}; the GPUs are given. Partitions: "
        f"{4 * servers['gate']} of vla.requests.v1 (and what goes with it), "
        f"{planned.partitions_a_gpu * planned.gpus} accepted.",
        "## Simulated runs on that installation\n\n"
        + _runs(points)
        + "\n\nA device is busy as soon as anything waits: what shows its load is the size of its batches, up to "
        f"{max(device.batch_sizes)}. In time: within {planned.ttl_ms:g} ms of asking, of all who asked. Expired: "
        "refused by the GPU worker before it cost device time. Late: served within the deadline, which counts from the "
        "broker's append, but not within that of the robot; still open at the end: the rest. Nothing is refused at the "
        "door here; the product's API answers 429 and 503 instead of letting queues grow. "
        "A run whose broker load nears 1 gets worse the longer it is: read it as saturated, not as a figure.",
        f"## What one adds: {points[-1].fleet.robots:,} robots\n\n" + _growth([(servers, points[-1]), *grown]),
        "## What placing robots by key costs\n\n"
        f"The busiest of {planned.gpus} GPUs has {max(counts)} robots, the mean is {np.mean(counts):.0f}: it is full "
        f"at {np.mean(counts) / max(counts):.0%} of what all could serve. At {planned.robots:,} robots "
        f"{_placed(at_plan)}; were they dealt evenly, {_placed(dealt)}. More partitions do not change it (a GPU's "
        "robots are few, not its partitions); fewer, larger workers or a placement by load would.",
        "## Servers for the same robots at other rates\n\n"
        + table(
            ("requests/s a robot", "requests/s", "gpu", *(part.name for part in unsized)),
            (_needs(inputs, dataclasses.replace(planned, hz=hz)) for hz in (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)),
        )
        + f"\n\nEach at a load of {planned.planned_load:.0%}.",
        "## Inputs\n\n"
        + table(
            ("figure", "value", "source"),
            [(name, f"{value:g}", inputs.sources[name]) for name, value in inputs.figures.items()],
        )
        + "\n\nChosen, not measured: "
        + ", ".join(f"{name} {value:g}" for name, value in dataclasses.asdict(planned).items())
        + ". CPU figures are those of a small stack on shared cores, at a rate at which clients and broker batch "
        "little: an upper bound for a large one.",
    ]


def _traffic(inputs: Inputs) -> str:
    f, fleet = inputs.figures, inputs.fleet
    rate = fleet.requests_s
    topics = ("request", "accepted", "results", "outcomes", "replies")
    written = sum(f[f"{topic}_bytes"] for topic in topics) * rate
    rows = [
        ("requests", f"{rate:,.0f}/s", f"{rate * _DAY_S / 1e6:,.0f} million a day"),
        ("into Kafka, before replication", f"{written / 1e6:,.0f} MB/s", f"{written * _DAY_S / 1e12:,.1f} TB a day"),
        (
            f"onto its disks, {fleet.replication} replicas",
            f"{written * fleet.replication / 1e6:,.0f} MB/s",
            f"{written * fleet.replication * _DAY_S / 1e12:,.1f} TB a day of retention",
        ),
        ("rows into Postgres", f"{rate:,.0f}/s", f"{rate * _DAY_S / 1e6:,.0f} million a day"),
        (
            "into S3, every frame consented",
            f"{rate * f['lake_bytes'] / 1e6:,.0f} MB/s",
            f"{rate * f['lake_bytes'] * _DAY_S / 1e12:,.1f} TB a day",
        ),
    ]
    return table(("", "rate", ""), rows)


def _parts(inputs: Inputs, servers: Mapping[str, int]) -> str:
    fleet = inputs.fleet
    rows = [
        (
            part.name,
            f"{part.seconds * 1000:.2f}",
            str(servers[part.name]),
            f"{part.load(fleet.requests_s, servers[part.name]):.0%}",
            f"{part.saturates_at(1):,.0f}/s",
            f"{part.saturates_at(servers[part.name]) / fleet.hz:,.0f} robots",
            part.adds,
        )
        for part in inputs.parts()
    ]
    head = ("part", "ms of one server a request", "servers", "load", "one server carries", "saturate at", "one adds")
    return table(head, rows)


def _runs(points: Sequence[Point]) -> str:
    rows = [
        (
            f"{p.fleet.robots:,}",
            f"{p.fleet.requests_s:,.0f}",
            *(f"{p.run.latency_ms(q):,.0f}" for q in (0.5, 0.95, 0.99)),
            f"{p.run.answered_share:.1%}",
            *(f"{p.run.outcomes[how] / p.run.asked:.1%}" for how in ("expired", "late")),
            f"{p.run.mean_batch:.1f}",
            f"{np.mean(p.run.loads['gpu']):.0%}",
            f"{max(p.run.loads['gpu']):.0%}",
            f"{max(p.run.loads['gate']):.0%}",
        )
        for p in points
    ]
    head = ("robots", "requests/s", "p50 ms", "p95 ms", "p99 ms", "in time", "expired", "late", "mean batch")
    return table((*head, "gpu", "busiest gpu", "busiest gate"), rows)


def _growth(grown: Sequence[Grown]) -> str:
    names = [name for name in grown[0][0] if name != "gpu host"]
    rows = [
        (
            *(str(counts[name]) for name in names),
            *(f"{point.run.latency_ms(q):,.0f}" for q in (0.5, 0.99)),
            f"{point.run.answered_share:.1%}",
            *(f"{point.run.outcomes[how] / point.run.asked:.1%}" for how in ("expired", "late")),
        )
        for counts, point in grown
    ]
    return table((*names, "p50 ms", "p99 ms", "in time", "expired", "late"), rows)


def _placed(point: Point) -> str:
    return (
        f"{point.run.answered_share:.1%} are answered in time, p50 {point.run.latency_ms(0.5):,.0f} ms, "
        f"p99 {point.run.latency_ms(0.99):,.0f} ms"
    )


def _needs(inputs: Inputs, fleet: Fleet) -> tuple[str, ...]:
    needed = {part.name: part.needed(fleet.requests_s, fleet.planned_load) for part in inputs.parts()}
    others = (str(count) for name, count in needed.items() if name not in ("gpu", "gpu host"))
    return (f"{fleet.hz:g}", f"{fleet.requests_s:,.0f}", str(needed["gpu"]), *others)


def _document(
    inputs: Inputs, servers: Mapping[str, int], points: Sequence[Point], grown: Sequence[Grown], dealt: Point
) -> dict[str, object]:
    def row(point: Point) -> dict[str, object]:
        run = point.run
        return {
            "robots": point.fleet.robots,
            "requests_s": point.fleet.requests_s,
            "latency_ms": {f"p{q * 100:g}": round(run.latency_ms(q), 1) for q in (0.5, 0.95, 0.99)},
            "asked": run.asked,
            "outcomes": dict(run.outcomes),
            "batches": {str(size): count for size, count in sorted(run.batches.items())},
            "mean_load": {name: round(float(np.mean(loads)), 4) for name, loads in run.loads.items()},
            "highest_load": {name: round(max(loads), 4) for name, loads in run.loads.items()},
        }

    return {
        "simulated": True,
        "device": dataclasses.asdict(inputs.device),
        "fleet": dataclasses.asdict(inputs.fleet),
        "figures": dict(inputs.figures),
        "sources": dict(inputs.sources),
        "servers": dict(servers),
        "runs": [row(point) for point in points],
        "grown": [{"servers": dict(counts), **row(point)} for counts, point in grown],
        "dealt_evenly": row(dealt),
    }


def _line(point: Point) -> str:
    run = point.run
    return (
        f"{point.fleet.robots:6,} robots: p50 {run.latency_ms(0.5):6,.0f} ms, p99 {run.latency_ms(0.99):6,.0f} ms, "
        f"{run.answered_share:6.1%} in time, gpu {np.mean(run.loads['gpu']):.0%}, batches of {run.mean_batch:.1f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
