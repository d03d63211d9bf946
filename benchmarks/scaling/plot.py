"""The wave in one picture: load, lag, replicas and latency over the same time."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

from benchmarks.devices import SIMULATED
from benchmarks.scaling.scaled_object import ScaledObject
from benchmarks.scaling.wave import Run

mpl.use("Agg")
#: Requests are counted, and latencies taken, in steps of this length.
BIN_S = 2.0


def draw(run: Run, spec: ScaledObject, path: Path) -> None:
    """Four panels, one below the other. spec: with the durations of the run."""
    figure, (load, lag, replicas, latency) = plt.subplots(
        4, 1, sharex=True, figsize=(9.0, 9.6), layout="constrained", height_ratios=(3, 2, 2, 3)
    )
    _load(load, run)
    _lag(lag, run, spec)
    _replicas(replicas, run, spec)
    _latency(latency, run)
    for axes in (load, lag, replicas, latency):
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    latency.set_xlabel("seconds since the first request")
    latency.set_xlim(0, max(sample.at_s for sample in run.samples) - run.began_s)
    load.set_title(f"KEDA's formula adds and drains GPU consumers, each with a {SIMULATED}", fontsize=11)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def per_second(times_s: NDArray[np.float64], end_s: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Middles of the steps, and how many of the times fall into each, a second."""
    edges = np.arange(0, end_s + BIN_S, BIN_S)
    counts, _ = np.histogram(times_s, edges)
    return edges[:-1] + BIN_S / 2, counts / BIN_S


def _load(axes: Axes, run: Run) -> None:
    end_s = max(request.done_s for request in run.requests) - run.began_s
    due = np.array([request.due_s - run.began_s for request in run.requests])
    done = np.array([request.done_s - run.began_s for request in run.requests if request.ok])
    axes.step(*per_second(due, end_s), where="mid", color="tab:gray", label="offered")
    axes.plot(*per_second(done, end_s), color="tab:blue", label="answered with actions")
    axes.set_ylabel("requests/s")
    axes.legend(loc="upper right", fontsize=8)


def _lag(axes: Axes, run: Run, spec: ScaledObject) -> None:
    times = [sample.at_s - run.began_s for sample in run.samples]
    axes.plot(times, [sample.lag for sample in run.samples], color="tab:red", label="lag of the workers' group")
    threshold = spec.lag_threshold
    axes.axhline(threshold, color="tab:gray", linestyle=":", label=f"lagThreshold: {threshold} a replica")
    axes.set_ylabel("records")
    axes.legend(loc="upper right", fontsize=8)


def _replicas(axes: Axes, run: Run, spec: ScaledObject) -> None:
    times = [sample.at_s - run.began_s for sample in run.samples]
    desired, ready = [sample.desired for sample in run.samples], [sample.ready for sample in run.samples]
    axes.step(times, desired, where="post", color="tab:gray", linestyle="--", label="desired")
    axes.step(times, ready, where="post", color="tab:green", label="ready")
    axes.set(ylabel="replicas", yticks=range(max(*desired, *ready) + 2))
    axes.legend(loc="upper right", fontsize=8)


def _latency(axes: Axes, run: Run) -> None:
    due = np.array([request.due_s - run.began_s for request in run.requests if request.ok])
    took = np.array([request.latency_ms / 1000 for request in run.requests if request.ok])
    steps = np.floor(due / BIN_S).astype(int)
    present = np.unique(steps)
    for quantile, color in ((50, "tab:blue"), (95, "tab:orange")):
        values = [float(np.percentile(took[steps == step], quantile)) for step in present]
        axes.plot((present + 0.5) * BIN_S, values, color=color, label=f"p{quantile}, by when it was due")
    axes.set_ylabel("latency, s")
    axes.legend(loc="upper right", fontsize=8)
