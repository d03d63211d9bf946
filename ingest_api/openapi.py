"""What the OpenAPI document says beyond what FastAPI sees: bodies, examples, problem documents, keys."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ingest_api.access import BEARER
from ingest_api.access import secured as secured
from ingest_api.control import ControlBody
from ingest_api.model_schemas import MODEL_SCHEMAS
from ingest_api.openapi_tenancy import TENANCY_SCHEMAS
from ingest_api.problems import MEDIA_TYPE
from ingest_api.request_body import InferenceBody
from ingest_api.safety import SafetyBody
from schemas.cards import CardSet, EmbodimentCard
from schemas.codes import Code
from schemas.scopes import Scope

#: The body that the README's curl sends.
EXAMPLE_FILE = Path(__file__).resolve().parent.parent / "examples" / "inference_request.json"


#: Of a route that does not say more.
SECURED = secured(Scope.INFERENCE)

PROBLEM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "description": "Problem document (RFC 9457).",
    "required": ["type", "title", "status", "detail", "code", "request_id", "violations"],
    "properties": {
        "type": {"type": "string", "example": "urn:vlastream:problem:invalid_robot_type"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": [code.value for code in Code]},
        "request_id": {"type": "string"},
        "violations": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["field", "reason", "detail"],
                "properties": {name: {"type": "string"} for name in ("field", "reason", "detail")},
            },
        },
        "recorded": {
            "type": "boolean",
            "description": "true: this is the request's outcome, the same request_id gets it again",
        },
        "replayed": {"type": "boolean"},
        "safety": {"$ref": "#/components/schemas/SafetyReport"},
    },
}

SAFETY_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["score", "mode", "modified", "checks", "violations"],
    "properties": {
        "score": {"type": "number", "minimum": 0, "maximum": 1, "description": "the minimum of the checks"},
        "mode": {"type": "string", "enum": ["reject", "clamp", "monitor"]},
        "modified": {"type": "boolean"},
        "checks": {"type": "object", "additionalProperties": {"type": "number"}},
        "violations": PROBLEM_SCHEMA["properties"]["violations"],
    },
}

VERDICT_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["robot_type", "passed", "safety", "actions"],
    "properties": {
        "robot_type": {"type": "string"},
        "passed": {"type": "boolean"},
        "safety": {"$ref": "#/components/schemas/SafetyReport"},
        "actions": {
            "type": "array",
            "description": "as a robot would get them: in mode clamp within every limit",
            "items": {"type": "array", "items": {"type": "number"}},
        },
    },
}

_TIMINGS = ("total", "ingest", "request_gate", "queue", "inference", "results", "action_gate", "reply")
CHUNK_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "request_id": {"type": "string"},
        "result_id": {"type": "string"},
        "model": {"type": "string"},
        "model_revision": {"type": "string", "description": "hash of the weights"},
        "robot_id": {"type": "string"},
        "episode_id": {"type": ["string", "null"]},
        "step": {"type": "integer"},
        "actions": {
            "type": "object",
            "required": ["horizon", "dim", "names", "units", "control_rate_hz", "values"],
            "properties": {
                "horizon": {"type": "integer"},
                "dim": {"type": "integer"},
                "names": {"type": "array", "items": {"type": "string"}},
                "units": {"type": "array", "items": {"type": "string"}},
                "control_rate_hz": {"type": "number"},
                "values": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}},
            },
        },
        "safety": {"$ref": "#/components/schemas/SafetyReport"},
        "timings_ms": {
            "type": "object",
            "description": "the parts add up to the total; a replay has the total only",
            "required": ["total"],
            "properties": {name: {"type": "number"} for name in _TIMINGS},
        },
        "batch_size": {"type": "integer"},
        "replayed": {"type": "boolean"},
        "expired": {"type": "boolean", "description": "true: must not be executed"},
    },
}
CHUNK_SCHEMA["required"] = list(CHUNK_SCHEMA["properties"])

CONTROL_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["target", "stopped", "who", "why", "at_ms", "record"],
    "properties": {
        "target": {"type": "string", "example": "robot:3f0c6c9e-0000-5000-8000-000000000000/arm-1"},
        "stopped": {"type": "boolean"},
        "who": {"type": "string"},
        "why": {"type": "string"},
        "at_ms": {"type": "integer", "description": "when the broker took it, Unix epoch"},
        "record": {"type": "string", "description": "topic/partition/offset"},
    },
}

INFERENCES_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["request_id", "inferences"],
    "properties": {
        "request_id": {"type": "string"},
        "inferences": {
            "type": "array",
            "description": "rows of inference_log, newest first",
            "minItems": 1,
            "items": {"type": "object"},
        },
    },
}


def _rows(name: str, description: str, **others: dict[str, Any]) -> dict[str, Any]:
    """An object with a list of rows under `name`."""
    rows = {"type": "array", "description": description, "items": {"type": "object"}}
    return {"type": "object", "required": [name, *others], "properties": {name: rows, **others}}


_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_COUNT: dict[str, Any] = {"type": "integer"}
_FLAG: dict[str, Any] = {"type": "boolean"}
DATA_SCHEMAS: dict[str, Any] = {
    "Recorded": {"type": "object", "required": ["id", "record"], "properties": {"id": _TEXT, "record": _TEXT}},
    "Episodes": _rows("episodes", "rows of the table episodes"),
    "FeedbackRows": _rows("feedback", "rows of the table feedback"),
    "FeedbackStats": _rows("types", "by feedback_type", count=_COUNT, success_rate={"type": ["number", "null"]}),
    "Matches": _rows("matches", "nearest first, with `similarity`, the cosine"),
    "InferencePage": _rows("inferences", "rows of inference_log, newest first", next=_MAYBE_TEXT),
    "Figures": _rows("rows", "one object each"),
    "ConsentHistory": _rows("changes", "rows of the table consent_audit"),
    "RobotTypes": _rows("robots", "robot types: name, title, verified, action spaces, models that drive them"),
    "RobotType": {
        "type": "object",
        "required": ["robot_type", "verified", "action_spaces", "models", "card"],
        "properties": {"robot_type": _TEXT, "card": {"type": "object"}},
    },
    "Withdrawn": {"type": "object", "required": ["robot_type"], "properties": {"robot_type": _TEXT}},
    "Consent": {
        "type": "object",
        "required": ["customer_id", "tier", "version", "anonymization_level"],
        "properties": {
            "customer_id": _TEXT,
            "tier": {"type": "string", "enum": ["none", "metadata", "full"]},
            "version": _COUNT,
            "consented_at": _MAYBE_TEXT,
            "expires_at": _MAYBE_TEXT,
            "anonymization_level": {"type": "string", "enum": ["none", "partial", "full"]},
            "can_store_embeddings": _FLAG,
            "can_store_images": _FLAG,
            "can_use_for_training": _FLAG,
        },
    },
    "StreamSessions": _rows("sessions", "open WebSocket sessions of this process"),
    "Act": {
        "type": "object",
        "required": ["__numpy__", "dtype", "shape"],
        "properties": {"__numpy__": _TEXT, "dtype": _TEXT, "shape": {"type": "array", "items": _COUNT}},
    },
    "ActBody": {
        "type": "object",
        "description": "image (json-numpy), instruction, state and unnorm_key; or all of it as a text in `encoded`",
    },
    "Config": {"type": "object", "required": ["applied", "config"], "properties": {"config": {"type": "object"}}},
    "Erasure": {
        "type": "object",
        "required": ["customer_id", "state", "kafka"],
        "properties": {
            "customer_id": _TEXT,
            "state": {"type": "string", "enum": ["none", "pending", "done"]},
            "erased_before": _MAYBE_TEXT,
            "asked_before": _TEXT,
            "removed": {"type": ["object", "null"], "description": "rows, files and entries that were removed"},
            "finished_at": _MAYBE_TEXT,
            "kafka": {"type": "array", "description": "what the log holds until then", "items": {"type": "object"}},
        },
    },
}

_PROBLEMS = {
    400: "not JSON, a wrong type, a missing or an unknown field",
    401: "no valid key",
    403: "the key may not do this",
    404: "unknown model, or nothing there",
    408: "the body did not come in time",
    409: "superseded by a newer observation of this robot",
    413: "body or images too large",
    422: "refused by a gate; the violations say why",
    423: "an operator stopped this robot, model or fleet",
    429: "over a limit; see Retry-After",
    500: "the policy or the service failed",
    503: "overloaded, no live worker, or a server is away; see Retry-After",
    504: "the deadline passed",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that may answer these."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": _PROBLEMS[status], "content": {MEDIA_TYPE: {"schema": schema}}} for status in statuses
    }


def json_answer(schema: str, description: str) -> dict[int | str, dict[str, Any]]:
    reference = {"$ref": f"#/components/schemas/{schema}"}
    return {200: {"description": description, "content": {"application/json": {"schema": reference}}}}


def text_answer(description: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}}


def not_ready(description: str) -> dict[int | str, dict[str, Any]]:
    """The 503 of a probe: the same body as its 200."""
    return {503: {"description": description, "content": {"application/json": {"schema": {"type": "object"}}}}}


def drop_framework_errors(document: dict[str, Any]) -> None:
    """Take out FastAPI's own 422, which no route here answers: paths are strings, bodies are parsed by us."""
    schemas = document["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    for operation in (operation for path in document["paths"].values() for operation in path.values()):
        if "application/json" in operation["responses"].get("422", {}).get("content", {}):
            del operation["responses"]["422"]


def inference_body() -> dict[str, Any]:
    """`openapi_extra` of POST /v1/inference. The example is the shipped one where this runs from a checkout."""
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/InferenceBody"}}
    if EXAMPLE_FILE.is_file():
        content["example"] = json.loads(EXAMPLE_FILE.read_text(encoding="utf-8"))
    return {**secured(Scope.INFERENCE), "requestBody": {"required": True, "content": {"application/json": content}}}


def safety_body(cards: CardSet) -> dict[str, Any]:
    """`openapi_extra` of POST /v1/safety/evaluate; the example holds still the arm that the first model drives."""
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/SafetyBody"}}
    served = [card for model in cards.models for name in model.embodiments if (card := cards.embodiment(name))]
    if first := next(iter([*served, *cards.embodiments]), None):
        content["example"] = _stillness(first)
    return {**secured(Scope.INFERENCE), "requestBody": {"required": True, "content": {"application/json": content}}}


def json_body(schema: str, scope: Scope | None, example: dict[str, Any] | None = None) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a key and a body of this component schema."""
    content: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{schema}"}}
    if example is not None:
        content["example"] = example
    return {**secured(scope), "requestBody": {"required": True, "content": {"application/json": content}}}


def control_body() -> dict[str, Any]:
    """`openapi_extra` of POST /v1/control."""
    example = {
        "action": "stop",
        "scope": "robot",
        "robot_id": "arm-1",
        "reason": "a person is in the cell",
        "by": "ana",
    }
    content = {"schema": {"$ref": "#/components/schemas/ControlBody"}, "example": example}
    return {**secured(Scope.CONTROL), "requestBody": {"required": True, "content": {"application/json": content}}}


def _stillness(card: EmbodimentCard) -> dict[str, Any]:
    """One action within every range: zero where that is allowed, an open gripper."""
    action = [min(max(0.0, dim.range[0]), dim.range[1]) for dim in card.actions]
    if card.gripper is not None:
        for i in card.gripper.indices:
            action[i] = card.gripper.open_value
    return {"robot_type": card.robot_type, "action": action, "mode": "reject"}


def components(bodies: Sequence[type[BaseModel]] = ()) -> dict[str, Any]:
    """Schemas and the security scheme, to be merged into the document's components.

    bodies: of the routes that name theirs by `json_body`.
    """
    schemas: dict[str, Any] = {"Problem": PROBLEM_SCHEMA, "SafetyReport": SAFETY_SCHEMA, "ActionChunk": CHUNK_SCHEMA}
    schemas |= {"Control": CONTROL_SCHEMA, "SafetyVerdict": VERDICT_SCHEMA, "Inferences": INFERENCES_SCHEMA}
    schemas |= DATA_SCHEMAS | MODEL_SCHEMAS | TENANCY_SCHEMAS
    models: list[type[BaseModel]] = [InferenceBody, SafetyBody, ControlBody, *bodies]
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        for name, part in {**schema.pop("$defs", {}), model.__name__: schema}.items():
            if schemas.setdefault(name, part) != part:
                raise ValueError(f"two schemas of the document are called {name}: rename one")
    scheme = {"type": "http", "scheme": "bearer", "description": "a key of `vlastream keys create`, or a token"}
    return {"schemas": schemas, "securitySchemes": {BEARER: scheme}}
