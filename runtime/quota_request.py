"""The request AlterClientQuotas (KIP-546, API key 49, version 0) for aiokafka's client, which lacks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Float64, Int16, Int32, Schema, String

_ENTITY = ("entity", Array(("entity_type", String("utf-8")), ("entity_name", String("utf-8"))))


class AlterClientQuotasResponse_v0(Response):  # type: ignore[misc] # noqa: N801 - named as aiokafka names versions
    API_KEY = 49
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("entries", Array(("error_code", Int16), ("error_message", String("utf-8")), _ENTITY)),
    )


class AlterClientQuotasRequest_v0(RequestStruct):  # type: ignore[misc] # noqa: N801
    API_KEY = 49
    API_VERSION = 0
    RESPONSE_TYPE = AlterClientQuotasResponse_v0
    SCHEMA = Schema(
        (
            "entries",
            Array(
                _ENTITY,
                ("ops", Array(("key", String("utf-8")), ("value", Float64), ("remove", Boolean))),
            ),
        ),
        ("validate_only", Boolean),
    )


Struct: TypeAlias = AlterClientQuotasRequest_v0


class AlterClientQuotasRequest(Request[Struct]):  # type: ignore[misc] # aiokafka has no types
    """values: quota's name -> its number; None takes it away."""

    API_KEY = 49

    def __init__(self, user: str, values: Mapping[str, float | None]) -> None:
        self._user = user
        self._values = values

    def build(self, request_struct_class: type[Struct]) -> Struct:
        operations = [(name, value or 0.0, value is None) for name, value in self._values.items()]
        return request_struct_class([([("user", self._user)], operations)], False)
