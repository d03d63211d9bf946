"""`vlastream config`: the settings as an example file, checked, or shown with secrets masked."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from runtime.errors import Fatal
from runtime.settings import Settings, declared_settings, given_names, load_settings, repository

Say = Callable[[str], None]

#: Names that people bring from elsewhere, and what holds here instead.
NOT_SETTINGS = {
    "RATE_LIMIT_ENABLED": "it is named ENABLE_RATE_LIMITS here",
    "API_HOST": "it is named HOST here",
    "API_PORT": "it is named PORT here",
}
#: How alike a name must be to be taken for a misspelt one: one letter of a dozen.
_ALIKE = 0.92
_WIDTH = 118
_HEAD = """\
# Settings of every role. Copy to .env and change what differs; the values below are the defaults.
# `vlastream config check` says what is wrong with them; `vlastream up` sets those of the embedded stack by itself.
# Written by `vlastream config example`.
"""


def example() -> str:
    """The text of .env.example: every setting with its default, as the model declares it."""
    lines, group = [_HEAD.rstrip()], ""
    for setting in declared_settings():
        if setting.group != group:
            group = setting.group
            lines += ["", f"# --- {group}"]
        lines += textwrap.wrap(setting.comment, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        default = Settings.model_fields[setting.name].default
        lines.append(f"# {setting.name.upper()}=" if default is None else f"{setting.name.upper()}={_plain(default)}")
    return "\n".join(lines) + "\n"


def check(say: Say) -> int:
    """One line a problem, with what to do; 0 where there is none. Likely mistakes are warned of, and are no problem."""
    for warning in warnings(*given_names()):
        say(f"warning: {warning}")
    try:
        settings = load_settings()
    except Fatal as error:
        for line in str(error).splitlines()[1:]:
            say(f"problem: {line.strip()}")
        return 1
    for warning in missing_files(settings):
        say(f"warning: {warning}")
    say(f"the settings can be used ({settings.environment})")
    return 0


def missing_files(settings: Settings) -> Iterator[str]:
    """What is named and not there. No problem in itself: settings may be checked elsewhere than they are used."""
    for name in ("kafka_ssl_ca_location", "s3_ca_bundle"):
        path = getattr(settings, name)
        if path and not Path(path).is_file():
            yield f"{name.upper()}: there is no file {path} on this machine"
    if not settings.cards_dir.is_dir():
        yield f"CARDS_DIR: there is no folder {settings.cards_dir} on this machine"


def show(settings: Settings, say: Say) -> None:
    """Every setting as this process sees it. Secrets are masked, also those within addresses."""
    for setting in declared_settings():
        say(f"{setting.name.upper()}={_masked(getattr(settings, setting.name))}")


def warnings(environment: set[str], env_file: set[str]) -> Iterator[str]:
    """Variables that look like ours and are not: they are silently without effect otherwise."""
    known = {name.upper() for name in Settings.model_fields}
    for name in sorted((environment | env_file) - known):
        # The environment holds much that is none of our business; `.env` is written for us.
        near = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE if name not in env_file else 0.6)
        if name in NOT_SETTINGS:
            yield f"{name} has no effect: {NOT_SETTINGS[name]}"
        elif near:
            yield f"{name} has no effect: did you mean {near[0]}?"
        elif name in env_file:
            yield f"{name} in .env has no effect: there is no such setting, see `vlastream config example`"


def _plain(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case SecretStr():
            return value.get_secret_value()
        case tuple():
            return ",".join(map(str, value))
        case float():
            return f"{value:g}"
        case Path() if value.is_relative_to(repository()):
            return str(value.relative_to(repository()))
        case _:
            return "" if value is None else str(value)


def _masked(value: Any) -> str:
    if not isinstance(value, SecretStr):
        return _plain(value)
    text = value.get_secret_value()
    scheme, separator, rest = text.partition("://")
    if not separator:
        return "***" if text else ""
    # What stands behind the last @ says where the server is; what stands before it is nobody's business.
    where = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}://{'***@' if '@' in rest else ''}{where}"
