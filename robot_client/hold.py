"""The hold rule as robots import it; it stands in `schemas`, as the API holds by it too (docs/protocols.md)."""

from __future__ import annotations

from schemas.hold import HoldRule

__all__ = ["HoldRule"]
