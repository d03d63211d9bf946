"""`eval "$(vlastream env)"`: the addresses and secrets of a running stack as variables of a shell."""

from __future__ import annotations

import shlex
from typing import Any

from runtime.errors import Fatal
from runtime.settings import Settings
from runtime.stack.component import Say
from runtime.stack.layout import read_json
from runtime.stack.postgres import programs_folder


def show_exports(settings: Settings, *, say: Say) -> None:
    """One `export` a line, quoted for a POSIX shell. Raises Fatal where no stack runs."""
    stack = read_json(settings.stack_file)
    if stack is None:
        raise Fatal("no stack runs in this folder: start one with `vlastream up`")
    for name, value in {**variables(stack), "STACK_FILE": str(settings.stack_file.resolve())}.items():
        say(f"export {name}={shlex.quote(value)}")
    # psql, pg_dump and the like, of the version that the server has.
    say(f'export PATH={shlex.quote(str(programs_folder()))}:"$PATH"')


def variables(stack: dict[str, Any]) -> dict[str, str]:
    """The settings that the roles read, by their names, and API and API_KEY."""
    named = {
        "API": stack["api"],
        "API_KEY": stack["api_key"],
        "KAFKA_BOOTSTRAP_SERVERS": stack["kafka"],
        "DATABASE_URL": stack["database"],
        "REDIS_URL": stack["redis"],
        "FLEETS": stack["fleets"],
    }
    named |= {f"s3_{name}".upper(): value for name, value in stack["s3"].items()}
    return named | {name.upper(): value for name, value in stack.get("security", {}).items()}
