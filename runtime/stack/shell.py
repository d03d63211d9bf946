"""`eval "$(vlastream env)"`: the addresses and secrets of a running stack as variables of a shell."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from runtime.errors import Fatal
from runtime.settings import Settings
from runtime.stack.component import Say
from runtime.stack.layout import read_json
from runtime.stack.postgres import programs_folder
from runtime.stack_file import settings_of


def show_exports(settings: Settings, *, say: Say) -> None:
    """One `export` a line, quoted for a POSIX shell. Raises Fatal where no stack runs."""
    stack = read_json(settings.stack_file)
    if stack is None:
        raise Fatal("no stack runs in this folder: start one with `vlastream up`")
    for name, value in {**variables(stack), "STACK_FILE": str(settings.stack_file.resolve())}.items():
        say(f"export {name}={shlex.quote(value)}")
    # psql, pg_dump and the like, of the version that the server has.
    say(f'export PATH={shlex.quote(str(programs_folder()))}:"$PATH"')
    if stack.get("security"):
        # That psql has no TLS: our command leads it to the server.
        say(f'psql() {{ {shlex.quote(sys.executable)} -m runtime.cli db psql "$@"; }}')


def variables(stack: dict[str, Any]) -> dict[str, str]:
    """The settings that the roles read, by their names, and API and API_KEY."""
    named = {name.upper(): str(value) for name, value in settings_of(stack).items()}
    return {"API": stack["api"], "API_KEY": stack["api_key"], **named}
