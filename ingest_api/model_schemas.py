"""JSON schemas of what is said of models and GPUs, for the OpenAPI document."""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_COUNT: dict[str, Any] = {"type": "integer"}
_FLAG: dict[str, Any] = {"type": "boolean"}
_MAYBE: dict[str, Any] = {"type": ["number", "null"]}
_NUMBER: dict[str, Any] = {"type": "number"}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object that always has these; it may have more."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_DEPLOYMENT = _object(
    deployment=_TEXT,
    policy=_TEXT,
    cameras=_list(_TEXT),
    embodiments=_list(_TEXT),
    state_dim=_COUNT,
    action_dim=_COUNT,
    horizon=_COUNT,
    traffic={**_NUMBER, "description": "relative weight: of the last `vlastream models traffic`, else the card's"},
    share={**_NUMBER, "minimum": 0, "maximum": 1, "description": "of the model's robots"},
    live_workers=_COUNT,
    revisions={**_list(_TEXT), "description": "hashes of the weights that live workers have loaded"},
    devices=_list(_TEXT),
)
_WORKER = _object(
    worker_id=_TEXT,
    host=_TEXT,
    device=_TEXT,
    revision=_TEXT,
    ready=_FLAG,
    max_batch=_COUNT,
    in_flight=_COUNT,
    queue_depth=_COUNT,
    seen_at_ms=_COUNT,
)
_MODEL_STATS = _object(
    deployment=_TEXT,
    requests={**_COUNT, "description": "completions of the live workers since their start"},
    refused={**_COUNT, "description": "of these, those without actions"},
    latency_p50_s={**_MAYBE, "description": "worker's receipt to completion, last 512 requests, slowest worker"},
    latency_p95_s=_MAYBE,
    batch_sizes={"type": "object", "additionalProperties": _COUNT, "description": "size: how many batches"},
    mean_batch_size=_MAYBE,
)
_GPU = _object(
    worker_id=_TEXT,
    host=_TEXT,
    deployment=_TEXT,
    device=_TEXT,
    uuid=_MAYBE_TEXT,
    name=_TEXT,
    utilization_percent=_MAYBE,
    memory_used_bytes=_MAYBE,
    memory_total_bytes=_MAYBE,
    memory_utilization_percent=_MAYBE,
    memory_per_inference_bytes=_MAYBE,
    temperature_celsius=_MAYBE,
    power_watts=_MAYBE,
    throttled_by=_list(_TEXT),
    seen_at_ms=_COUNT,
)
MODEL_SCHEMAS: dict[str, Any] = {
    "Model": _object(
        model=_TEXT,
        default=_FLAG,
        available=_FLAG,
        traffic_changed_at_ms={"type": ["integer", "null"], "description": "null: the cards deal its robots"},
        deployments=_list(_DEPLOYMENT),
        embodiments=_list({"type": "object"}),
    ),
    "Models": _object(models=_list({"$ref": "#/components/schemas/Model"})),
    "ModelLoad": _object(
        model=_TEXT, loaded=_FLAG, deployments=_list(_object(deployment=_TEXT, loaded=_FLAG, workers=_list(_WORKER)))
    ),
    "ModelStats": _object(model=_TEXT, requests=_COUNT, refused=_COUNT, deployments=_list(_MODEL_STATS)),
    "Gpus": _object(
        gpus=_list(_GPU), count=_COUNT, hosts=_list(_TEXT), cpu_workers=_COUNT, remote_workers=_COUNT, detail=_TEXT
    ),
}
