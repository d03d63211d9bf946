"""What the GPU workers say of themselves, and the broker of them: GPUs and queues."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from fastapi import APIRouter
from prometheus_client import Gauge

from ingest_api import openapi
from runtime.group_lag import GroupLag, Lag
from runtime.metrics import Metrics
from runtime.workers import LiveWorkers
from schemas.cards import CardSet, ModelCard
from schemas.messages import WorkerHeartbeat
from schemas.topics import worker_group


def build_router(cards: CardSet, workers: LiveWorkers, group_lag: GroupLag) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/v1/monitoring/gpu",
        tags=["monitoring"],
        summary="GPUs of all hosts, from the workers' heartbeats",
        responses=openapi.json_answer("Gpus", "every GPU with a live worker; a figure that is not known is null"),
    )
    async def gpu() -> dict[str, Any]:
        return gpus_document(workers)

    @router.get("/v1/monitoring/queue", tags=["monitoring"], summary="Requests that wait for a device")
    async def queue() -> dict[str, Any]:
        return queues_document(cards, workers, group_lag)

    return router


def gpus_document(workers: LiveWorkers) -> dict[str, Any]:
    """Every GPU with a live worker; a figure that is not known is None."""
    beats = workers.live()
    gpus = [_gpu(beat) for beat in beats if on_gpu(beat)]
    cpu_workers = sum(beat.device == "cpu" for beat in beats)
    remote_workers = len(beats) - len(gpus) - cpu_workers
    elsewhere = f", {remote_workers} on a server of somebody else" if remote_workers else ""
    detail = "" if gpus else f"no live worker has a GPU; {cpu_workers} run on a CPU{elsewhere}"
    return {
        "gpus": gpus,
        "count": len(gpus),
        "hosts": sorted({beat.host for beat in beats if beat.host}),
        "cpu_workers": cpu_workers,
        "remote_workers": remote_workers,
        "detail": detail,
    }


def queues_document(cards: CardSet, workers: LiveWorkers, group_lag: GroupLag) -> dict[str, Any]:
    """What waits for each deployment, and how far each consumer group is behind."""
    deployments = [
        queue_document(card, workers.live(card.deployment), group_lag.of(worker_group(card.deployment)))
        for card in cards.models
    ]
    groups = {
        group: {"lag": lag.records, "oldest_age_s": oldest_age_s(lag), "throughput_per_s": lag.rate_per_s}
        for group, lag in group_lag.all().items()
    }
    depth = sum(document["queue_depth"] for document in deployments)
    return {"queue_depth": depth, "deployments": deployments, "consumer_groups": groups}


def capacity_per_s(beats: Sequence[WorkerHeartbeat]) -> float:
    """Requests a second that these workers serve at full batches, by the cost that each has measured."""
    seconds = [(beat.max_batch, beat.cost_per_item_s * beat.max_batch + beat.cost_base_s) for beat in beats]
    return sum(batch / took_s for batch, took_s in seconds if took_s > 0)


def estimated_wait_s(lag: Lag | None, beats: Sequence[WorkerHeartbeat]) -> float | None:
    """How long a request that comes now waits until the device is done with all before it; None where nobody knows."""
    capacity = capacity_per_s(beats)
    return None if lag is None or capacity <= 0 else lag.records / capacity


def oldest_age_s(lag: Lag) -> float | None:
    """As documents tell it: to the millisecond, None where it is not known."""
    return None if lag.oldest_age_s is None else round(lag.oldest_age_s, 3)


def queue_document(card: ModelCard, beats: list[WorkerHeartbeat], lag: Lag | None) -> dict[str, Any]:
    """lag, oldest_age_s and throughput_per_s are the broker's figures, some seconds old; null before the first look.

    oldest_age_s is null too where the broker did not tell in time.
    """
    return {
        "deployment": card.deployment,
        "model": card.model,
        "live_workers": len(beats),
        "queue_depth": sum(beat.queue_depth for beat in beats),
        "in_flight": sum(beat.in_flight for beat in beats),
        "completed_total": sum(beat.completed_total for beat in beats),
        "lag": None if lag is None else lag.records,
        "oldest_age_s": None if lag is None else oldest_age_s(lag),
        "throughput_per_s": None if lag is None else lag.rate_per_s,
        "capacity_per_s": capacity_per_s(beats),
        "estimated_wait_s": estimated_wait_s(lag, beats),
        "workers": [
            {
                "worker_id": beat.worker_id,
                "device": beat.device,
                "queue_depth": beat.queue_depth,
                "in_flight": beat.in_flight,
                "max_batch": beat.max_batch,
                "cost_per_item_s": beat.cost_per_item_s,
                "cost_base_s": beat.cost_base_s,
            }
            for beat in beats
        ],
    }


def on_gpu(beat: WorkerHeartbeat) -> bool:
    return beat.device.startswith("cuda") or is_read(beat)


def is_read(beat: WorkerHeartbeat) -> bool:
    """Whether the worker could look at its GPU: without the driver's library its figures are not known."""
    return beat.gpu_memory_total_bytes > 0


def set_gauges(metrics: Metrics, cards: CardSet, workers: LiveWorkers) -> None:
    """Bring the gauges that come from heartbeats to now; a worker that is gone leaves none behind."""
    beats = workers.live()
    of_a_gpu: dict[Gauge, Callable[[WorkerHeartbeat], float | None]] = {
        metrics.gpu_utilization: lambda beat: _told(beat, "gpu_utilization"),
        metrics.gpu_memory_utilization: _memory_percent,
        metrics.gpu_memory_used: lambda beat: beat.gpu_memory_used_bytes,
        metrics.gpu_memory_total: lambda beat: beat.gpu_memory_total_bytes,
        metrics.gpu_temperature: lambda beat: _told(beat, "gpu_temperature_celsius"),
        metrics.gpu_power: lambda beat: _told(beat, "gpu_power_watts"),
        metrics.gpu_memory_per_inference: lambda beat: beat.gpu_memory_per_inference_bytes,
    }
    for gauge in (*of_a_gpu, metrics.gpu_throttled):
        gauge.clear()
    for beat in filter(is_read, beats):
        labels = (beat.worker_id, beat.device)
        for gauge, figure in of_a_gpu.items():
            value = figure(beat)
            if value is not None:
                gauge.labels(*labels).set(value)
        for reason in beat.gpu_throttle_reasons:
            metrics.gpu_throttled.labels(*labels, reason).set(1)
    for card in cards.models:
        own = [beat for beat in beats if beat.deployment == card.deployment]
        metrics.workers_live.labels(card.deployment).set(len(own))
        metrics.queue_depth.labels(card.deployment).set(sum(beat.queue_depth for beat in own))


def _gpu(beat: WorkerHeartbeat) -> dict[str, Any]:
    known = is_read(beat)
    return {
        "worker_id": beat.worker_id,
        "host": beat.host,
        "deployment": beat.deployment,
        "device": beat.device,
        "uuid": beat.gpu_uuid or None,
        "name": beat.device_name,
        "utilization_percent": _told(beat, "gpu_utilization"),
        "memory_used_bytes": beat.gpu_memory_used_bytes if known else None,
        "memory_total_bytes": beat.gpu_memory_total_bytes if known else None,
        "memory_utilization_percent": _memory_percent(beat) if known else None,
        "memory_per_inference_bytes": beat.gpu_memory_per_inference_bytes or None,
        "temperature_celsius": _told(beat, "gpu_temperature_celsius"),
        "power_watts": _told(beat, "gpu_power_watts"),
        "throttled_by": list(beat.gpu_throttle_reasons),
        "seen_at_ms": beat.sent_at_ms,
    }


_Figure = Literal["gpu_utilization", "gpu_temperature_celsius", "gpu_power_watts"]


def _told(beat: WorkerHeartbeat, name: _Figure) -> float | None:
    """A figure that not every GPU tells."""
    return float(getattr(beat, name)) if beat.HasField(name) else None


def _memory_percent(beat: WorkerHeartbeat) -> float:
    return 100 * beat.gpu_memory_used_bytes / beat.gpu_memory_total_bytes
