"""Topics, messages and operations as an AsyncAPI 3.0 document: `python -m schemas.asyncapi` writes docs/asyncapi.yaml.

Source: https://www.asyncapi.com/docs/reference/specification/v3.0.0 and the Kafka bindings 0.5.0.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.descriptor import Descriptor

from schemas import headers as h
from schemas import messages
from schemas.topics import DEAD_LETTER_SUFFIX, GATE_CHANGELOG, REPLIES, REQUESTS, Topic, declare

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "asyncapi.yaml"
_BINDING = "0.5.0"
#: Stand for every fleet and deployment, as names that topics may have; shown as parameters.
_FLEET, _DEPLOYMENT = "each-fleet", "each-deployment"
_PARAMETERS = {
    "fleet": {"description": "Name of the fleet, which is its customer id too: a-z, 0-9 and '-'."},
    "deployment": {"description": "A model's revision, as its card in deploy/cards/models names it."},
}
_TEXT = {"type": "string", "maxLength": h.MAX_VALUE_BYTES}
_NUMBER = {"type": "string", "pattern": "^-?[0-9]{1,19}$"}
_FLAG = {"type": "string", "enum": ["true", "false"]}
_HEADERS: dict[str, dict[str, Any]] = {
    h.CONTENT_TYPE: {"const": h.PROTOBUF},
    h.CE_SPECVERSION: {"const": "1.0"},
    h.CE_ID: _TEXT,
    h.CE_TYPE: _TEXT,
    h.CE_SOURCE: _TEXT,
    h.CE_TIME: {**_TEXT, "format": "date-time"},
    h.TRACEPARENT: _TEXT,
    h.REQUEST_ID: {**_TEXT, "format": "uuid"},
    h.CORRELATION_ID: {**_TEXT, "description": "Comes back with the answer; absent: the request id."},
    h.REPLY_TOPIC: {**_TEXT, "description": "Believed on the API's own topic alone."},
    h.REPLY_PARTITION: {**_NUMBER, "description": "Believed on the API's own topic alone."},
    h.CUSTOMER_ID: {**_TEXT, "description": "Believed on the API's own topic alone: a fleet's customer is itself."},
    h.CONSENT_TIER: {"enum": ["none", "metadata", "full"]},
    h.DEADLINE_MS: {**_NUMBER, "description": "Unix epoch, the broker's clock; stamped by the gate."},
    h.REPLAYED: {**_FLAG, "description": "The first answer to this request id again."},
    h.EXPIRED: {**_FLAG, "description": "Its deadline has passed: never execute it."},
}
_REQUEST_HEADERS = (
    *(h.CONTENT_TYPE, h.CE_SPECVERSION, h.CE_ID, h.CE_TYPE, h.CE_SOURCE, h.CE_TIME, h.TRACEPARENT, h.REQUEST_ID),
    h.CORRELATION_ID,
)
_HEADERS_OF: dict[str, tuple[str, ...]] = {
    "ApiRequest": (*_REQUEST_HEADERS, h.REPLY_TOPIC, h.REPLY_PARTITION, h.CUSTOMER_ID),
    "InferenceRequest": _REQUEST_HEADERS,
    "Reply": (*_REQUEST_HEADERS, h.REPLAYED, h.EXPIRED),
    "AcceptedRequest": (*_REQUEST_HEADERS, h.CUSTOMER_ID, h.CONSENT_TIER, h.DEADLINE_MS),
}
#: Message of the document -> message of schemas/vla/v1, where they differ: the same bytes with other headers.
_MESSAGE_OF = {"ApiRequest": "InferenceRequest", "AcceptedRequest": "InferenceRequest", "Reply": "Outcome"}


def document() -> dict[str, Any]:
    topics = [
        topic
        for topic in declare(
            fleets=[_FLEET], deployments=[_DEPLOYMENT], partitions=4, accepted_partitions=8, reply_partitions=16
        )
        if not topic.name.endswith(DEAD_LETTER_SUFFIX) and topic.name != GATE_CHANGELOG
    ]
    names = dict.fromkeys(_message_name(topic) for topic in topics)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "vlastream on Kafka",
            "version": "1.0.0",
            "description": (
                "Requests of robots and their answers. A fleet produces to its own request topic and reads its own "
                "replies; everything else is between the roles. Every request gets one outcome."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": h.PROTOBUF,
        "servers": {
            "kafka": {
                "host": "{bootstrap}",
                "protocol": "kafka-secure",
                "variables": {"bootstrap": {"default": "127.0.0.1:9092", "description": "host:port of a broker"}},
                "security": [{"$ref": "#/components/securitySchemes/scram"}],
            }
        },
        "channels": {_channel_id(topic.name): _channel(topic) for topic in topics},
        "operations": _operations(),
        "components": {
            "messages": {name: _message(name) for name in names},
            "schemas": {name: _schema(name) for name in dict.fromkeys(_MESSAGE_OF.get(n, n) for n in names)},
            "securitySchemes": {"scram": {"type": "scramSha512", "description": "User `fleet.<name>`; over TLS."}},
        },
    }


def document_text() -> str:
    return yaml.dump(document(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


def _message_name(topic: Topic) -> str:
    if topic.name == REQUESTS:
        return "ApiRequest"
    if topic.name.startswith("vla.accepted."):
        return "AcceptedRequest"
    return "Reply" if topic.name.startswith("vla.replies.") else topic.message


def _address(name: str) -> str:
    return name.replace(_FLEET, "{fleet}").replace(_DEPLOYMENT, "{deployment}")


def _channel_id(name: str) -> str:
    """`vla.requests.each-fleet.v1` as `requestsOfFleet`."""
    words = name.removeprefix("vla.").removesuffix(".v1").split(".")
    return words[0] + {_FLEET: "OfFleet", _DEPLOYMENT: "OfDeployment"}.get(words[-1], "")


def _channel(topic: Topic) -> dict[str, Any]:
    name = _message_name(topic)
    address = _address(topic.name)
    parameters = {key: value for key, value in _PARAMETERS.items() if f"{{{key}}}" in address}
    config = topic.broker_config()
    return {
        "address": address,
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
        **({"parameters": parameters} if parameters else {}),
        "bindings": {
            "kafka": {
                "topicConfiguration": {
                    "cleanup.policy": config["cleanup.policy"].split(","),
                    "retention.ms": int(config["retention.ms"]),
                    "max.message.bytes": int(config["max.message.bytes"]),
                },
                "bindingVersion": _BINDING,
            }
        },
        "x-key": topic.key,
    }


def _operations() -> dict[str, Any]:
    def channel(name: str) -> dict[str, str]:
        return {"$ref": f"#/channels/{name}"}

    def of(name: str, message: str) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/{name}/messages/{message}"}]

    return {
        "askAsFleet": {
            "action": "send",
            "summary": "A fleet's robot asks for actions. Key: robot_id, placed by murmur2 (murmur2_random).",
            "channel": channel("requestsOfFleet"),
            "messages": of("requestsOfFleet", "InferenceRequest"),
            # In the partition of the same number that the request was written to.
            "reply": {"channel": channel("repliesOfFleet"), "messages": of("repliesOfFleet", "Reply")},
        },
        "tellEpisodeAsFleet": {
            "action": "send",
            "summary": "A fleet's robot tells of an episode's start or end.",
            "channel": channel("episodesOfFleet"),
            "messages": of("episodesOfFleet", "EpisodeEvent"),
        },
        "askAsApi": {
            "action": "send",
            "summary": "The API asks for a robot that came by REST or WebSocket.",
            "channel": channel(_channel_id(REQUESTS)),
            "messages": of(_channel_id(REQUESTS), "ApiRequest"),
            "reply": {
                "address": {"location": f"$message.header#/{h.REPLY_TOPIC}"},
                "channel": channel(_channel_id(REPLIES)),
                "messages": of(_channel_id(REPLIES), "Reply"),
            },
        },
        "hearOutcomes": {
            "action": "receive",
            "summary": "Whoever keeps a record reads every outcome, each once.",
            "channel": channel("outcomes"),
            "messages": of("outcomes", "Outcome"),
        },
    }


def _message(name: str) -> dict[str, Any]:
    schema = _MESSAGE_OF.get(name, name)
    names = _HEADERS_OF.get(name, ())
    described: dict[str, Any] = {"name": name, "contentType": h.PROTOBUF}
    if names:
        described["headers"] = {"type": "object", "properties": {header: _HEADERS[header] for header in names}}
    if h.CORRELATION_ID in names:
        described["correlationId"] = {"location": f"$message.header#/{h.CORRELATION_ID}"}
    described["payload"] = {"$ref": f"#/components/schemas/{schema}"}
    described["bindings"] = {"kafka": {"key": {"type": "string"}, "bindingVersion": _BINDING}}
    return described


def _schema(name: str) -> dict[str, Any]:
    """The message and whatever it holds, in the words of its .proto file."""
    found: dict[str, None] = {}

    def collect(descriptor: Descriptor) -> None:
        if descriptor.name in found or descriptor.containing_type is not None:
            return
        found[descriptor.name] = None
        for field in (*descriptor.fields, *(f for nested in descriptor.nested_types for f in nested.fields)):
            if field.message_type is not None:
                collect(field.message_type)
            if field.enum_type is not None:
                found[field.enum_type.name] = None

    collect(getattr(messages, name).DESCRIPTOR)
    text = "\n".join(path.read_text() for path in sorted((ROOT / "schemas" / "vla" / "v1").glob("*.proto")))
    blocks = [re.search(rf"^(message|enum) {one} {{\n.*?^}}", text, re.DOTALL | re.MULTILINE) for one in found]
    words = "\n\n".join(block.group() for block in blocks if block is not None)
    return {
        "schemaFormat": "application/vnd.google.protobuf;version=3",
        "schema": f'syntax = "proto3";\n\npackage vla.v1;\n\n{words}\n',
    }


class _Dumper(yaml.SafeDumper):
    """Long texts as blocks, and no anchors: each part stands by itself."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


if __name__ == "__main__":
    DOCUMENT.write_text(document_text())
