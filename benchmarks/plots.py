"""The plots of a report, drawn with matplotlib into PNG files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from benchmarks.devices import SIMULATED
from benchmarks.goals import BESIDES_MODEL_P50_MS, BESIDES_MODEL_P99_MS, VLLM_OMNI_P50_MS
from benchmarks.layers import LAYERS
from benchmarks.measure import DEADLINE_MS, Measured

mpl.use("Agg")
_WIDTH_IN, _HEIGHT_IN, _DPI = 9.0, 4.8, 120


def draw(results: Sequence[Measured], name: str, folder: Path) -> list[str]:
    """Draw what the results have data for; returns the file names in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for suffix, plot in (("layers", _layers), ("latency", _latency), ("scaling", _scaling)):
        figure, axes = plt.subplots(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        if plot(axes, results):
            drawn.append(f"{name}-{suffix}.png")
            figure.savefig(folder / drawn[-1], dpi=_DPI)
        plt.close(figure)
    return drawn


def _layers(axes: Axes, results: Sequence[Measured]) -> bool:
    """What is spent besides the model, layer on layer: p50 as bars, the p99 of the sum as marks."""
    shown = [r for r in results if r.scenario.goal == "overhead" and r.besides_model is not None]
    if not shown:
        return False
    names = [r.scenario.name for r in shown]
    left = np.zeros(len(shown))
    for layer in LAYERS[1:]:
        width = np.array([r.layers[layer].p50 for r in shown])
        axes.barh(names, width, left=left, label=f"{layer}, p50")
        left += width
    p99 = [r.besides_model.p99 for r in shown if r.besides_model is not None]
    axes.plot(p99, names, "k|", markersize=14, label="all besides the model, p99")
    axes.axvline(
        VLLM_OMNI_P50_MS, color="tab:red", linestyle=":", label=f"vLLM-Omni, published p50: {VLLM_OMNI_P50_MS} ms"
    )
    axes.axvline(BESIDES_MODEL_P50_MS, color="tab:gray", linestyle="--", label=f"goal p50 {BESIDES_MODEL_P50_MS:g} ms")
    axes.axvline(BESIDES_MODEL_P99_MS, color="tab:gray", linestyle="-.", label=f"goal p99 {BESIDES_MODEL_P99_MS:g} ms")
    axes.invert_yaxis()
    axes.set(xlabel="milliseconds", title="Everything besides the model")
    axes.legend(fontsize=8)
    return True


def _latency(axes: Axes, results: Sequence[Measured]) -> bool:
    """The whole distribution of latency, tail first: share of requests that took longer."""
    shown = [r for r in results if r.latencies_ms and r.scenario.hz is not None]
    for r in shown:
        values = np.sort(r.latencies_ms)
        device = r.scenario.deployment.device
        label = r.scenario.name + (f" ({SIMULATED})" if device is not None and device.base_ms else "")
        axes.step(values, 1 - np.arange(len(values)) / len(values), where="post", label=label)
    axes.axvline(DEADLINE_MS, color="tab:gray", linestyle=":", label=f"deadline {DEADLINE_MS:.0f} ms")
    axes.set(xscale="log", yscale="log", xlabel="latency from when it was due, ms", ylabel="share that took longer")
    axes.set_title("Latency, open loop")
    axes.legend(fontsize=7)
    axes.grid(visible=True, alpha=0.3)
    return bool(shown)


def _scaling(axes: Axes, results: Sequence[Measured]) -> bool:
    """Inferences a second by the number of simulated devices, beside what the devices could do at best."""
    shown = [r for r in results if r.scenario.goal in ("saturation", "scaling")]
    device = shown[0].scenario.deployment.device if shown else None
    if device is None:
        return False
    workers = [r.scenario.deployment.workers for r in shown]
    axes.plot(workers, [n * device.best_rate for n in workers], "k--", label="the devices' best batch")
    axes.plot(workers, [r.rate for r in shown], "o-", label="measured, saturated")
    axes.set(xticks=workers, xlabel=f"consumers, each with a {SIMULATED}", ylabel="inferences/s", ylim=(0, None))
    axes.set_title(f"Scaling over {SIMULATED}s ({device.name})\n{device.source}", fontsize=9)
    axes.legend()
    return True
