"""docs/asyncapi.yaml says what the code declares, and is a valid AsyncAPI 3.0 document.

No Python package ships the specification's own JSON schema: what it asks of the parts that are used here stands below
(it was compared with 3.0.0.json of the npm package @asyncapi/specs 6.11.1, which accepts the document too).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from schemas.asyncapi import DOCUMENT, document, document_text
from schemas.topics import GATE_CHANGELOG, declare

REFERENCE = {"type": "object", "properties": {"$ref": {"type": "string"}}, "required": ["$ref"], "maxProperties": 1}
REFERENCES = {"type": "array", "items": REFERENCE, "uniqueItems": True}
LOCATION = {"type": "string", "pattern": r"^\$message\.(header|payload)#(/(([^/~])|(~[01]))*)*"}


def closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """An object with these properties and extensions, and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "patternProperties": {r"^x-[\w\d.\-_]+$": {}},
        "additionalProperties": False,
    }


def named(value: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": value, "propertyNames": {"pattern": r"^[\w\d.\-_]+$"}}


TEXT = {"type": "string"}
KAFKA_CHANNEL = closed(
    {
        "topicConfiguration": {
            "type": "object",
            "properties": {
                "cleanup.policy": {"type": "array", "items": {"enum": ["compact", "delete"]}},
                "retention.ms": {"type": "integer", "minimum": -1},
                "max.message.bytes": {"type": "integer", "minimum": 0},
            },
        },
        "bindingVersion": {"enum": ["0.4.0", "0.5.0"]},
    }
)
SCHEMA = closed(
    {
        "asyncapi": {"const": "3.0.0"},
        "info": closed(
            {"title": TEXT, "version": TEXT, "description": TEXT, "license": closed({"name": TEXT}, "name")},
            "title",
            "version",
        ),
        "defaultContentType": TEXT,
        "servers": named(
            closed(
                {
                    "host": TEXT,
                    "protocol": TEXT,
                    "variables": named(closed({"default": TEXT, "description": TEXT})),
                    "security": REFERENCES,
                },
                "host",
                "protocol",
            )
        ),
        "channels": named(
            closed(
                {
                    "address": TEXT,
                    "messages": named(REFERENCE),
                    "parameters": named(closed({"description": TEXT})),
                    "bindings": closed({"kafka": KAFKA_CHANNEL}),
                }
            )
        ),
        "operations": named(
            closed(
                {
                    "action": {"enum": ["send", "receive"]},
                    "summary": TEXT,
                    "channel": REFERENCE,
                    "messages": REFERENCES,
                    "reply": closed(
                        {
                            "address": closed({"location": LOCATION}, "location"),
                            "channel": REFERENCE,
                            "messages": REFERENCES,
                        }
                    ),
                },
                "action",
                "channel",
            )
        ),
        "components": closed(
            {
                "messages": named(
                    closed(
                        {
                            "name": TEXT,
                            "contentType": TEXT,
                            "headers": {"type": "object", "properties": {"type": {"const": "object"}}},
                            "correlationId": closed({"location": LOCATION}, "location"),
                            "payload": REFERENCE,
                            "bindings": closed({"kafka": closed({"key": {"type": "object"}, "bindingVersion": TEXT})}),
                        }
                    )
                ),
                "schemas": named(closed({"schemaFormat": TEXT, "schema": TEXT}, "schemaFormat", "schema")),
                "securitySchemes": named(closed({"type": {"const": "scramSha512"}, "description": TEXT}, "type")),
            }
        ),
    },
    "asyncapi",
    "info",
)


def references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"]
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from references(one)


def resolve(whole: dict[str, Any], reference: str) -> Any:
    part: Any = whole
    for step in reference.removeprefix("#/").split("/"):
        part = part[step]
    return part


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text() == document_text(), "run `python -m schemas.asyncapi`"


def test_the_document_is_valid_and_every_reference_leads_somewhere() -> None:
    whole = yaml.safe_load(DOCUMENT.read_text())
    problems = [f"{list(e.absolute_path)}: {e.message}" for e in Draft202012Validator(SCHEMA).iter_errors(whole)]
    assert problems == []
    for reference in references(whole):
        assert resolve(whole, reference)


def test_a_document_with_a_wrong_part_is_not_valid() -> None:
    for place, value in (("action", "sned"), ("bogus", 1)):
        whole = document()
        whole["operations"]["askAsFleet"][place] = value
        assert not Draft202012Validator(SCHEMA).is_valid(whole)


def test_the_messages_of_an_operation_are_those_of_its_channel() -> None:
    whole = document()
    for operation in whole["operations"].values():
        for asked in (operation, operation.get("reply", operation)):
            channel = asked["channel"]["$ref"]
            assert all(message["$ref"].startswith(f"{channel}/messages/") for message in asked["messages"])


def test_every_topic_of_the_flow_is_a_channel_and_each_parameter_is_described() -> None:
    whole = document()
    topics = declare(fleets=["f"], deployments=["d"], partitions=1, accepted_partitions=1, reply_partitions=1)
    expected = {topic.name for topic in topics if not topic.name.endswith(".dlq")} - {GATE_CHANGELOG}
    addresses = {channel["address"] for channel in whole["channels"].values()}
    assert {a.replace("{fleet}", "f").replace("{deployment}", "d") for a in addresses} == expected
    for channel in whole["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel.get("parameters", {}))


def test_an_answer_is_found_by_its_correlation_id() -> None:
    whole = document()
    assert whole["operations"]["askAsApi"]["reply"]["address"] == {"location": "$message.header#/reply_topic"}
    for message in ("ApiRequest", "InferenceRequest", "Reply"):
        assert whole["components"]["messages"][message]["correlationId"]["location"].endswith("#/correlation_id")
