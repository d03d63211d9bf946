"""What `stack.json` of a running embedded stack says, as settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def settings_of(stack: Mapping[str, Any]) -> dict[str, Any]:
    """Where the servers are and how they are spoken to, by the names of `Settings`. Raises KeyError."""
    return {
        "kafka_bootstrap_servers": stack["kafka"],
        "database_url": stack["database"],
        "redis_url": stack["redis"],
        "fleets": stack["fleets"],
        **{f"s3_{name}": value for name, value in stack["s3"].items()},
        **stack.get("security", {}),
    }
