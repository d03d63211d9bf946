"""docs/api.md is what the two documents say, and all of it."""

from __future__ import annotations

from pathlib import Path

from ingest_api.api_page import page
from schemas import asyncapi
from schemas.codes import Code
from tests.api_page import written
from tests.unit.api_case import Api

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"


def test_the_page_is_what_the_documents_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == written(), "run `make docs`"


def test_every_route_refusal_and_topic_is_on_the_page() -> None:
    text = written()
    for path, methods in Api().app.openapi()["paths"].items():
        assert all(f"### `{method.upper()} {path}`" in text for method in methods), path
    assert all(f"`{code}`" in text for code in Code)
    assert all(f"`{channel['address']}`" in text for channel in asyncapi.document()["channels"].values())


def test_a_field_says_its_type_its_bounds_and_whether_it_may_be_left_out() -> None:
    body = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8, "description": "shown | in lists"},
            "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
        },
    }
    part = {"type": "object", "required": ["size"], "properties": {"size": {"type": "integer", "minimum": 1}}}
    operation = {
        "tags": ["things"],
        "summary": "Make a thing",
        "security": [{"bearer": ["data"]}],
        "requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Thing"}}}},
        "responses": {"201": {"description": "made"}, "403": {"description": "no"}},
    }
    document = {
        "paths": {"/things": {"post": operation}},
        "components": {"schemas": {"Thing": body, "Part": part}},
    }
    text = page(document, asyncapi.document())
    assert "### `POST /things`\n\nMake a thing. Scope: `data`." in text
    assert "| `name` | string, 1..8 characters | shown \\| in lists |" in text
    assert "| `parts`? | array of Part |  |\n| `parts.size` | integer, at least 1 |  |" in text
    assert "201: made.\n\nElse: 403." in text
