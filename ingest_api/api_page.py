"""The page docs/api.md: every route of the OpenAPI document and every topic and message of the AsyncAPI document.

`make docs` writes it; it holds nothing that is not in the two documents or in `schemas/codes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from schemas.codes import STATUS

Json = dict[str, Any]

#: What robots come for stands before what operators and other protocols ask.
_FIRST_TAGS = ("inference", "stream", "episodes", "feedback", "safety", "robots", "models")
#: What FastAPI says of an answer that nobody described.
_FASTAPIS_OWN = "Successful Response"

_HEAD = """# API

Every REST route, refusal, topic and message. `make docs` writes this page from the API's own OpenAPI document
(`/openapi.json`, to try out at `/docs`) and from [asyncapi.yaml](asyncapi.yaml); WebSockets and the wire protocols of
others are in [protocols.md](protocols.md), a client for robots in [client.md](client.md).

- A key goes into `Authorization: Bearer vla_...`. **Scope** is what the key must be allowed; *none* takes no key.
- Errors are problem documents (RFC 9457) with `code`, `detail`, `request_id` and
  `violations: [{field, reason, detail}]`; 429 and 503 say when to come again in `Retry-After`.
- Fields that are not listed are refused. `?` marks what may be left out.
"""


def page(openapi: Json, asyncapi: Json) -> str:
    """The whole page as Markdown."""
    lines = [_HEAD, *_codes(), *_routes(openapi), *_topics(asyncapi)]
    return "\n".join(lines).rstrip() + "\n"


# --- refusals


def _codes() -> Iterator[str]:
    yield "# Refusals\n"
    yield "| status | `code` |"
    yield "|---|---|"
    for status in sorted(set(STATUS.values())):
        yield f"| {status} | {', '.join(f'`{code}`' for code, its in STATUS.items() if its == status)} |"
    yield ""


# --- routes


def _routes(openapi: Json) -> Iterator[str]:
    by_tag: dict[str, list[tuple[str, str, Json]]] = {tag: [] for tag in _FIRST_TAGS}
    for path, methods in openapi["paths"].items():
        for method, operation in methods.items():
            by_tag.setdefault(operation["tags"][0], []).append((method.upper(), path, operation))
    schemas = openapi["components"]["schemas"]
    yield "# REST\n"
    for tag, routes in by_tag.items():
        yield f"## {tag.capitalize()}\n"
        for method, path, operation in routes:
            yield from _route(method, path, operation, schemas)


def _route(method: str, path: str, operation: Json, schemas: Json) -> Iterator[str]:
    yield f"### `{method} {path}`\n"
    yield f"{operation['summary']}. Scope: {_scope(operation)}.\n"
    fields = [*map(_parameter, operation.get("parameters", [])), *_body(operation, schemas)]
    if fields:
        yield "| field | type | meaning |"
        yield "|---|---|---|"
        yield from fields
        yield ""
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            said = answer["description"] if answer["description"] != _FASTAPIS_OWN else "as it is"
            yield f"{status}: {said}{_answer_fields(answer, schemas)}.\n"
    refused = [status for status in operation["responses"] if not status.startswith("2")]
    if refused:
        yield f"Else: {', '.join(refused)}.\n"


def _scope(operation: Json) -> str:
    security = operation.get("security")
    if not security:
        return "*none*"
    scopes = security[0]["bearer"]
    return ", ".join(f"`{scope}`" for scope in scopes) if scopes else "any key"


def _parameter(parameter: Json) -> str:
    mark = "" if parameter.get("required") else "?"
    meaning = parameter.get("description", "")
    return f"| `{parameter['name']}`{mark} ({parameter['in']}) | {_type(parameter['schema'])} | {_cell(meaning)} |"


def _body(operation: Json, schemas: Json) -> Iterator[str]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield from _fields(_resolved(content["schema"], schemas), schemas, "")


def _fields(schema: Json, schemas: Json, prefix: str) -> Iterator[str]:
    required = schema.get("required", [])
    for name, field in schema.get("properties", {}).items():
        mark = "" if name in required else "?"
        yield f"| `{prefix}{name}`{mark} | {_type(field)} | {_cell(field.get('description', ''))} |"
        inner = field.get("items", field)
        for option in [inner, *(option.get("items", option) for option in field.get("anyOf", []))]:
            if "$ref" in option and not prefix:
                yield from _fields(_resolved(option, schemas), schemas, f"{name}.")


def _answer_fields(answer: Json, schemas: Json) -> str:
    schema = _resolved(answer.get("content", {}).get("application/json", {}).get("schema", {}), schemas)
    names = schema.get("properties") or {}
    return ": " + ", ".join(f"`{name}`" for name in names) if names else ""


def _resolved(schema: Json, schemas: Json) -> Json:
    reference = schema.get("$ref")
    found: Json = schemas[reference.rsplit("/", 1)[1]] if reference else schema
    return found


def _type(schema: Json) -> str:
    """A type in a few words, with its bounds."""
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[1]
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"])
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        kind = " or ".join(kind)
    if kind == "array":
        kind = f"array of {_type(schema.get('items', {}))}"
    form = f" ({schema['format']})" if "format" in schema else ""
    default = schema.get("default")
    said = f", default `{default}`" if default not in (None, "") else ""
    return f"{kind}{form}{_bounds(schema)}{said}"


def _bounds(schema: Json) -> str:
    for low, high, unit in (
        ("minimum", "maximum", ""),
        ("minLength", "maxLength", " characters"),
        ("minItems", "maxItems", ""),
    ):
        least, most = (
            bound if bound is not None and abs(bound) < 2**31 else None for bound in (schema.get(low), schema.get(high))
        )
        if least is not None and most is not None:
            return f", {least}..{most}{unit}"
        if least is not None:
            return f", at least {least}{unit}"
        if most is not None:
            return f", at most {most}{unit}"
    return ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


# --- topics


def _topics(asyncapi: Json) -> Iterator[str]:
    yield "# Kafka\n"
    yield f"{asyncapi['info']['description']}\n"
    yield "## Topics\n"
    yield "| topic | message | headers |"
    yield "|---|---|---|"
    messages = asyncapi["components"]["messages"]
    for channel in asyncapi["channels"].values():
        for name in channel["messages"]:
            message = messages[name]
            headers = ", ".join(f"`{header}`" for header in message.get("headers", {}).get("properties", {}))
            yield f"| `{channel['address']}` | {name} | {headers} |"
    yield "\n## What a client does\n"
    shown: dict[str, None] = {}
    for operation in asyncapi["operations"].values():
        channel = asyncapi["channels"][operation["channel"]["$ref"].rsplit("/", 1)[1]]
        yield f"- {operation['action']} `{channel['address']}`: {operation['summary']}"
        shown.update(dict.fromkeys(_message_schema(messages[name]) for name in channel["messages"]))
    yield "\n## Messages of clients\n"
    yield "A Kafka value is one such protobuf message and nothing around it; the others are in `schemas/vla/v1/`.\n"
    for name in shown:
        yield f"### {name}\n"
        yield "```proto"
        yield asyncapi["components"]["schemas"][name]["schema"].split("package vla.v1;", 1)[1].strip()
        yield "```\n"


def _message_schema(message: Json) -> str:
    found: str = message["payload"]["$ref"].rsplit("/", 1)[1]
    return found
