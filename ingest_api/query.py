"""Query parameters of a GET: declared once as a model, for validation and for the OpenAPI document alike."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import HTTPConnection

from ingest_api.problems import Problem, fault
from schemas.codes import Code

#: Rows in one answer.
MOST_ROWS = 500
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def _rfc3339(text: object) -> datetime:
    if not isinstance(text, str) or not _RFC3339.fullmatch(text):
        raise ValueError("write it as 2026-01-31T12:00:00Z")
    moment = datetime.fromisoformat(text.upper())
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("this time is beyond the calendar") from error


def _whole(text: object) -> object:
    if isinstance(text, str) and not re.fullmatch(r"\d{1,9}", text, re.ASCII):
        raise ValueError("a whole number is meant")
    return text


def _flag(text: object) -> object:
    if text not in (True, False, "true", "false"):
        raise ValueError("true or false is meant")
    return text in (True, "true")


def _plain_text(text: str) -> str:
    # No column of ours holds it, and Postgres refuses it.
    if "\x00" in text:
        raise ValueError("a text cannot hold the character NUL")
    return text


Moment = Annotated[datetime, BeforeValidator(_rfc3339)]
Flag = Annotated[bool, BeforeValidator(_flag)]
Limit = Annotated[int, Field(ge=1, le=MOST_ROWS), BeforeValidator(_whole)]
Name = Annotated[str, Field(min_length=1, max_length=128), BeforeValidator(_plain_text)]


class Parameters(BaseModel):
    """The parameters of one route; one that is not declared is refused, as it would silently not filter."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Span(Parameters):
    """Which rows, and how many of them."""

    since: Moment | None = Field(default=None, description="not before this time")
    until: Moment | None = Field(default=None, description="before this time")
    limit: Limit = Field(default=100, description="rows at most")


ParametersT = TypeVar("ParametersT", bound=Parameters)


def parse_query(request: HTTPConnection, kind: type[ParametersT]) -> ParametersT:
    """Raises Problem 400 for an unknown, repeated or unusable parameter."""
    given: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in given:
            raise _refused([fault(name, "repeated", "name it once")])
        given[name] = value
    return parsed(given, kind)


def parsed(given: dict[str, str], kind: type[ParametersT]) -> ParametersT:
    """Parameters by name as what they are to be. Raises Problem 400."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        items = error.errors(include_url=False, include_context=False, include_input=False)
        faults = [fault(".".join(map(str, item["loc"])) or "query", item["type"], item["msg"]) for item in items]
        raise _refused(faults) from error


def described(kind: type[Parameters]) -> list[dict[str, Any]]:
    """The OpenAPI parameter objects of a model."""
    schema = kind.model_json_schema()
    required = schema.get("required", [])
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": content.get("description", ""),
            "schema": _without_null(content),
        }
        for name, content in schema["properties"].items()
    ]


def _without_null(content: dict[str, Any]) -> dict[str, Any]:
    """A parameter that is not given is not null: leave that branch out."""
    plain = {key: value for key, value in content.items() if key not in ("title", "description")}
    branches = [branch for branch in plain.pop("anyOf", []) if branch.get("type") != "null"]
    if branches:
        plain = {**branches[0], **plain}
    return {key: value for key, value in plain.items() if not (key == "default" and value is None)}


def _refused(faults: list[Any]) -> Problem:
    named = ", ".join(dict.fromkeys(f["field"] for f in faults[:5]))
    return Problem(Code.MALFORMED, f"these parameters are unknown or unusable: {named}", violations=faults)
