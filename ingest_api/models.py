"""Which models are served: their deployments and cards, what is loaded where, and how they do."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter

from ingest_api import openapi
from ingest_api.problems import Problem, fault
from runtime.traffic import TrafficTable
from runtime.workers import LiveWorkers
from schemas.cards import CardSet, ModelCard
from schemas.codes import Code
from schemas.messages import WorkerHeartbeat

#: Of a card, what is nobody's business but the worker's.
_PRIVATE = {"path", "policy_config", "normalisation", "weights"}


def build_router(cards: CardSet, workers: LiveWorkers, traffic: TrafficTable) -> APIRouter:
    router = APIRouter(tags=["models"])
    answers = openapi.json_answer

    @router.get("/v1/models", summary="Models that are served", responses=answers("Models", "every model"))
    async def models() -> dict[str, Any]:
        names = dict.fromkeys(card.model for card in cards.models)
        return {"models": [model_document(name, cards, workers, traffic) for name in names]}

    @router.get(
        "/v1/models/{model}",
        summary="One model: deployments, cameras, dimensions, embodiments, traffic",
        responses={**answers("Model", "the model"), **openapi.problems(404)},
    )
    async def one_model(model: str) -> dict[str, Any]:
        _known(model, cards)
        return model_document(model, cards, workers, traffic)

    @router.get(
        "/v1/models/{model}/load",
        summary="What of a model is loaded where",
        responses={**answers("ModelLoad", "live workers by deployment"), **openapi.problems(404)},
    )
    async def load(model: str) -> dict[str, Any]:
        deployments = [_load(card, workers.live(card.deployment)) for card in _known(model, cards)]
        return {"model": model, "loaded": any(d["loaded"] for d in deployments), "deployments": deployments}

    @router.get(
        "/v1/models/{model}/stats",
        summary="How a model does: requests, refusals, latency, batch sizes, of its live workers",
        responses={**answers("ModelStats", "since each worker's start"), **openapi.problems(404)},
    )
    async def stats(model: str) -> dict[str, Any]:
        deployments = [_stats(card, workers.live(card.deployment)) for card in _known(model, cards)]
        names = ("requests", "refused")
        return {"model": model, **{n: sum(d[n] for d in deployments) for n in names}, "deployments": deployments}

    return router


def _known(model: str, cards: CardSet) -> tuple[ModelCard, ...]:
    served = cards.deployments(model)
    if not served:
        known = ", ".join(sorted({card.model for card in cards.models})) or "none"
        detail = f"this model is not served; known are: {known}"
        raise Problem(Code.UNKNOWN_MODEL, detail, violations=[fault("model", "unknown_model", detail)])
    return served


def model_document(name: str, cards: CardSet, workers: LiveWorkers, traffic: TrafficTable) -> dict[str, Any]:
    """A model, its deployments' cards (without the policy's own settings), their share of robots and live workers."""
    served, weights = cards.deployments(name), traffic.weights(name)
    dealt = {c.deployment: c.traffic if weights is None else weights.get(c.deployment, 0.0) for c in served}
    total = sum(dealt.values()) or 1.0
    deployments = []
    for card in served:
        beats = workers.live(card.deployment)
        deployments.append(
            {
                **card.model_dump(mode="json", exclude=_PRIVATE),
                "traffic": dealt[card.deployment],
                "share": dealt[card.deployment] / total,
                "live_workers": len(beats),
                "revisions": sorted({beat.model_revision for beat in beats}),
                "devices": sorted({beat.device for beat in beats}),
            }
        )
    types = dict.fromkeys(robot_type for card in served for robot_type in card.embodiments)
    embodiments = [card.model_dump(mode="json") for card in map(cards.embodiment, types) if card is not None]
    record = traffic.of(name)
    return {
        "model": name,
        "default": cards.default_model == name,
        "available": any(d["live_workers"] for d in deployments),
        "traffic_changed_at_ms": record.at_ms if record is not None else None,
        "deployments": deployments,
        "embodiments": embodiments,
    }


def _load(card: ModelCard, beats: list[WorkerHeartbeat]) -> dict[str, Any]:
    return {
        "deployment": card.deployment,
        # A worker says nothing before its weights are on the device and warm.
        "loaded": bool(beats),
        "workers": [
            {
                "worker_id": beat.worker_id,
                "host": beat.host,
                "device": beat.device,
                "device_name": beat.device_name,
                "revision": beat.model_revision,
                "ready": True,
                "max_batch": beat.max_batch,
                "in_flight": beat.in_flight,
                "queue_depth": beat.queue_depth,
                "gpu_memory_per_inference_bytes": beat.gpu_memory_per_inference_bytes or None,
                "seen_at_ms": beat.sent_at_ms,
            }
            for beat in beats
        ],
    }


def _stats(card: ModelCard, beats: list[WorkerHeartbeat]) -> dict[str, Any]:
    batches: Counter[int] = Counter()
    for beat in beats:
        batches.update({batch.size: batch.count for batch in beat.batches})
    ran = sum(batches.values())
    told = [beat for beat in beats if beat.latency_p50_s > 0]
    return {
        "deployment": card.deployment,
        "requests": sum(beat.completed_total for beat in beats),
        "refused": sum(beat.refused_total for beat in beats),
        # Quantiles do not add up: the slowest worker's are told.
        "latency_p50_s": max((beat.latency_p50_s for beat in told), default=None),
        "latency_p95_s": max((beat.latency_p95_s for beat in told), default=None),
        "batch_sizes": {str(size): count for size, count in sorted(batches.items())},
        "mean_batch_size": sum(size * count for size, count in batches.items()) / ran if ran else None,
    }
