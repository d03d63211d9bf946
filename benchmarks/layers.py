"""Where a request's time went, from the marks that its stages left: single stages, and layers as vLLM-Omni has them.

The layers add up to the latency that the robot saw:
    model      the policy's call on the device
    pre/post   in the GPU worker besides: decoding, preparing, waiting for the device, finishing
    pipeline   gate, action gate and the hops between; over REST also the API's own work and its two hops
    wire       the way from and to the robot: HTTP; for a direct producer its hop into and out of Kafka
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from benchmarks.load import Sample
from schemas.messages import StageTimes

LAYERS = ("model", "pre/post", "pipeline", "wire")
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Milliseconds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles:
        """Raises ValueError without values."""
        if not len(values):
            raise ValueError("no values")
        p50, p95, p99 = (float(value) for value in np.percentile(np.asarray(values), PERCENTILES))
        return cls(p50, p95, p99)


def stages_ms(sample: Sample, times: StageTimes) -> dict[str, float]:
    """Milliseconds of every stage of an answered request, in the order of the flow; their sum is its latency.

    All processes of the embedded stack read one clock; a stage that seems to end before it began took 0.
    """
    timings = sample.answer.timings_ms
    rest = "ingest" in timings
    received_us = times.gate_start_us - int(timings["ingest"] * 1000) if rest else int(sample.sent_s * 1e6)
    answered_us = times.action_gate_end_us + int(timings["reply"] * 1000) if rest else int(sample.done_s * 1e6)
    marks: list[tuple[str, float]] = [
        ("client late", sample.due_s * 1e6),
        ("HTTP request", sample.sent_s * 1e6),
        ("API and hop 1" if rest else "hop 1", received_us),
        ("request gate", times.gate_start_us),
        ("hop 2", times.gate_end_us),
        ("decode, prepare, wait", times.worker_received_us),
        ("model", times.infer_start_us),
        ("finish", times.infer_end_us),
        ("hop 3", times.worker_published_us),
        ("action gate", times.action_gate_start_us),
        ("hop 4 and API" if rest else "hop 4", times.action_gate_end_us),
        ("HTTP reply", answered_us),
        ("", sample.done_s * 1e6),
    ]
    spans = {name: max(after - mark, 0.0) / 1000 for (name, mark), (_, after) in pairwise(marks)}
    if not rest:
        del spans["HTTP request"], spans["HTTP reply"]
    return spans


def layers_ms(stages: Mapping[str, float]) -> dict[str, float]:
    """The four layers of one request. What the client was late is in none of them: it is the client's own."""
    direct = "hop 1" in stages
    wire = ("hop 1", "hop 4") if direct else ("HTTP request", "HTTP reply")
    inside = ("decode, prepare, wait", "finish")
    outside = {"client late", "model", *wire, *inside}
    return {
        "model": stages["model"],
        "pre/post": sum(stages[name] for name in inside),
        "pipeline": sum(value for name, value in stages.items() if name not in outside),
        "wire": sum(stages[name] for name in wire),
    }


def besides_model_ms(layers: Mapping[str, float]) -> float:
    return layers["pre/post"] + layers["pipeline"] + layers["wire"]


def summarise(rows: Sequence[Mapping[str, float]]) -> dict[str, Quantiles]:
    """Quantiles of every name, in order. Empty without rows."""
    return {name: Quantiles.of([row[name] for row in rows]) for name in rows[0]} if rows else {}


def cumulative(layers: Sequence[Mapping[str, float]]) -> dict[str, Quantiles]:
    """Latency up to and with each layer: model, +pre/post, +pipeline, +wire."""
    sums: list[dict[str, float]] = []
    for row in layers:
        total = 0.0
        sums.append({})
        for name in LAYERS:
            total += row[name]
            sums[-1][name if name == "model" else f"+{name}"] = total
    return summarise(sums)


def share(samples: Sequence[Sample], fits: Callable[[Sample], bool]) -> float:
    """Part of all samples, lost and refused ones included, 0..1."""
    return sum(fits(sample) for sample in samples) / len(samples) if samples else 0.0


def share_within(samples: Sequence[Sample], deadline_ms: float) -> float:
    return share(samples, lambda sample: sample.ok and sample.latency_ms <= deadline_ms)
