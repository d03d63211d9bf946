"""Schemas of what the routes of keys, customers, usage and audit answer."""

from __future__ import annotations

from typing import Any

_TEXT: dict[str, Any] = {"type": "string"}
_MAYBE_TEXT: dict[str, Any] = {"type": ["string", "null"]}
_MAYBE_COUNT: dict[str, Any] = {"type": ["integer", "null"]}
_FLAG: dict[str, Any] = {"type": "boolean"}
_SCOPES: dict[str, Any] = {"type": "array", "items": _TEXT}


def _object(**properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(name: str, items: str) -> dict[str, Any]:
    return _object(**{name: {"type": "array", "items": {"$ref": f"#/components/schemas/{items}"}}})


_KEY: dict[str, Any] = {
    "id": _TEXT,
    "prefix": _TEXT,
    "name": _TEXT,
    "scopes": _SCOPES,
    "rate_limit": _MAYBE_COUNT,
    "is_active": _FLAG,
    "expires_at": _MAYBE_TEXT,
    "last_used_at": _MAYBE_TEXT,
    "created_at": _TEXT,
}
_CUSTOMER: dict[str, Any] = {
    "id": _TEXT,
    "email": _TEXT,
    "tier": _TEXT,
    "is_active": _FLAG,
    "created_at": _TEXT,
    "limits": {"type": "object", "description": "those that hold; null: none"},
    "own_limits": {"type": "object", "description": "those that are not the tier's; null: as the tier"},
}
TENANCY_SCHEMAS: dict[str, Any] = {
    "Token": _object(token=_TEXT, token_type=_TEXT, scopes=_SCOPES, expires_at=_TEXT, expires_in_s={"type": "integer"}),
    "Key": _object(**_KEY),
    "Keys": _list("keys", "Key"),
    "NewKey": _object(key={**_TEXT, "description": "shown this once, and kept nowhere"}, **_KEY),
    "Customer": _object(**_CUSTOMER),
    "NewCustomer": _object(key=_TEXT, customer={"$ref": "#/components/schemas/Customer"}),
    "Customers": _list("customers", "Customer"),
    "CustomerStats": {
        "type": "object",
        "required": ["customer_id", "month", "quota", "days"],
        "properties": {
            "customer_id": _TEXT,
            "month": {"type": "object", "description": "sums of the calendar month, UTC"},
            "quota": {"type": "object", "description": "monthly_quota and what is left of it; null: no limit"},
            "days": {"type": "array", "items": {"type": "object"}},
        },
    },
    "Incidents": {
        "type": "object",
        "required": ["incidents"],
        "properties": {"incidents": {"type": "array", "items": {"type": "object"}}},
    },
    "Usage": {
        "type": "object",
        "required": ["rows"],
        "properties": {"rows": {"type": "array", "items": {"type": "object"}}},
    },
    "Audit": {
        "type": "object",
        "required": ["events"],
        "properties": {
            "events": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["at", "actor", "action", "target", "origin", "details"],
                },
            }
        },
    },
}
