"""What the GPU workers say of themselves: GPUs, queues, and which models have live workers."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from ingest_api import openapi
from ingest_api.problems import Problem, fault
from runtime.metrics import Metrics
from runtime.workers import LiveWorkers
from schemas.cards import CardSet, ModelCard
from schemas.codes import Code
from schemas.messages import WorkerHeartbeat


def build_router(cards: CardSet, workers: LiveWorkers) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models", tags=["models"], summary="Models that are served, with their live workers")
    async def models() -> dict[str, Any]:
        names = dict.fromkeys(card.model for card in cards.models)
        return {"models": [model_document(name, cards, workers) for name in names]}

    @router.get("/v1/models/{model}", tags=["models"], summary="One model", responses=openapi.problems(404))
    async def one_model(model: str) -> dict[str, Any]:
        if not cards.deployments(model):
            known = ", ".join(sorted({card.model for card in cards.models})) or "none"
            detail = f"this model is not served; known are: {known}"
            raise Problem(Code.UNKNOWN_MODEL, detail, violations=[fault("model", "unknown_model", detail)])
        return model_document(model, cards, workers)

    @router.get("/v1/monitoring/gpu", tags=["monitoring"], summary="GPUs, from the workers' heartbeats")
    async def gpu() -> dict[str, Any]:
        beats = workers.live()
        gpus = [_gpu(beat) for beat in beats if has_gpu(beat)]
        cpu_workers = len(beats) - len(gpus)
        detail = "" if gpus else f"no live worker has a GPU; {cpu_workers} run on a CPU"
        return {"gpus": gpus, "count": len(gpus), "cpu_workers": cpu_workers, "detail": detail}

    @router.get("/v1/monitoring/queue", tags=["monitoring"], summary="Requests that wait for a device")
    async def queue() -> dict[str, Any]:
        deployments = [queue_document(card, workers.live(card.deployment)) for card in cards.models]
        return {"queue_depth": sum(d["queue_depth"] for d in deployments), "deployments": deployments}

    return router


def model_document(name: str, cards: CardSet, workers: LiveWorkers) -> dict[str, Any]:
    """A model, its deployments' cards (without the policy's own settings) and their live workers."""
    deployments = []
    for card in cards.deployments(name):
        beats = workers.live(card.deployment)
        deployments.append(
            {
                **card.model_dump(mode="json", exclude={"path", "policy_config", "normalisation", "weights"}),
                "live_workers": len(beats),
                "revisions": sorted({beat.model_revision for beat in beats}),
                "devices": sorted({beat.device for beat in beats}),
            }
        )
    types = dict.fromkeys(robot_type for card in cards.deployments(name) for robot_type in card.embodiments)
    embodiments = [card.model_dump(mode="json") for card in map(cards.embodiment, types) if card is not None]
    return {
        "model": name,
        "default": cards.default_model == name,
        "available": any(d["live_workers"] for d in deployments),
        "deployments": deployments,
        "embodiments": embodiments,
    }


def queue_document(card: ModelCard, beats: list[WorkerHeartbeat]) -> dict[str, Any]:
    return {
        "deployment": card.deployment,
        "model": card.model,
        "live_workers": len(beats),
        "queue_depth": sum(beat.queue_depth for beat in beats),
        "in_flight": sum(beat.in_flight for beat in beats),
        "completed_total": sum(beat.completed_total for beat in beats),
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


def has_gpu(beat: WorkerHeartbeat) -> bool:
    return beat.gpu_memory_total_bytes > 0


def set_gauges(metrics: Metrics, cards: CardSet, workers: LiveWorkers) -> None:
    """Bring the gauges that come from heartbeats to now; a worker that is gone leaves none behind."""
    beats = workers.live()
    for gauge in (metrics.gpu_utilization, metrics.gpu_memory_utilization, metrics.gpu_memory_used):
        gauge.clear()
    for beat in beats:
        if has_gpu(beat):
            labels = (beat.worker_id, beat.device)
            metrics.gpu_utilization.labels(*labels).set(beat.gpu_utilization)
            metrics.gpu_memory_utilization.labels(*labels).set(_memory_percent(beat))
            metrics.gpu_memory_used.labels(*labels).set(beat.gpu_memory_used_bytes)
    for card in cards.models:
        own = [beat for beat in beats if beat.deployment == card.deployment]
        metrics.workers_live.labels(card.deployment).set(len(own))
        metrics.queue_depth.labels(card.deployment).set(sum(beat.queue_depth for beat in own))


def _gpu(beat: WorkerHeartbeat) -> dict[str, Any]:
    return {
        "worker_id": beat.worker_id,
        "deployment": beat.deployment,
        "device": beat.device,
        "name": beat.device_name,
        "utilization_percent": beat.gpu_utilization,
        "memory_used_bytes": beat.gpu_memory_used_bytes,
        "memory_total_bytes": beat.gpu_memory_total_bytes,
        "memory_utilization_percent": _memory_percent(beat),
        "temperature_celsius": beat.gpu_temperature_celsius,
        "seen_at_ms": beat.sent_at_ms,
    }


def _memory_percent(beat: WorkerHeartbeat) -> float:
    return 100 * beat.gpu_memory_used_bytes / beat.gpu_memory_total_bytes
