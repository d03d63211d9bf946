"""Which scope a route takes: declared where the OpenAPI document reads it, and enforced from there."""

from __future__ import annotations

from typing import Any

from schemas.scopes import Scope

#: Name of the security scheme in the document.
BEARER = "bearer"


def secured(scope: Scope | None) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a key with this scope; None: any key that is valid."""
    return {"security": [{BEARER: [] if scope is None else [str(scope)]}]}


def declared_scopes(extra: dict[str, Any] | None) -> list[str] | None:
    """The scopes that a route's `openapi_extra` names, none or one; None for a route that takes no key."""
    security = (extra or {}).get("security")
    return list(security[0][BEARER]) if security else None
