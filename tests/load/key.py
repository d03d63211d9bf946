"""The key and the other arguments of the load, as locust's command line takes them."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from locust.env import Environment

_STACK_FILE = Path(".vlastream/stack.json")


def add_arguments(parser: ArgumentParser) -> None:
    named: dict[str, Any] = {"env_var": "API_KEY", "is_secret": True, "default": ""}
    parser.add_argument("--api-key", help="of the customer whose robots these are", **named)
    parser.add_argument(
        "--drop-every",
        type=int,
        default=50,
        help="requests after which a robot on a WebSocket loses its connection with one in flight; 0: never",
    )


def key_of(environment: Environment) -> str:
    """--api-key, else the variable API_KEY, else that of the embedded stack in this folder; empty without one."""
    options = environment.parsed_options
    if options is not None and options.api_key:
        return str(options.api_key)
    try:
        return str(json.loads(_STACK_FILE.read_text())["api_key"])
    except (OSError, ValueError, KeyError):
        return ""
