"""docker-compose.yml and deploy/Dockerfile as a test reads them: merged, interpolated, by stage."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
COMPOSE_FILE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
#: ${NAME}, ${NAME:-default} and ${NAME:?what to do}: all that the file uses.
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(?::([-?])([^}]*))?\}")


@dataclass(frozen=True)
class Variable:
    """One that compose takes from .env. default: None where it must be set."""

    name: str
    default: str | None
    complaint: str = ""


def variables(text: str) -> list[Variable]:
    return [
        Variable(name, rest if kind == "-" else None, rest if kind == "?" else "")
        for name, kind, rest in _VARIABLE.findall(text)
    ]


def compose(values: Mapping[str, str]) -> dict[str, Any]:
    """The file, merged, with `values` put in, else the defaults. Raises KeyError for one that must be set."""

    def put_in(value: Any) -> Any:
        if isinstance(value, str):
            return _VARIABLE.sub(lambda m: values[m[1]] if m[1] in values or m[2] != "-" else m[3], value)
        if isinstance(value, dict):
            return {key: put_in(item) for key, item in value.items()}
        return [put_in(item) for item in value] if isinstance(value, list) else value

    document: dict[str, Any] = put_in(yaml.safe_load(COMPOSE_FILE.read_text()))
    return document


def required_values() -> dict[str, str]:
    """Something for every variable that has no default."""
    needed = {v.name for v in variables(COMPOSE_FILE.read_text()) if v.default is None}
    return {name: f"the-{name.lower().replace('_', '-')}-0123456789" for name in sorted(needed)}


@dataclass
class Stage:
    """One FROM of the Dockerfile with its instructions, and what it has from the stages that it stands on."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)
    parent: Stage | None = None

    def all(self, instruction: str) -> list[str]:
        """Arguments of every such instruction, those of the stages below first."""
        below = self.parent.all(instruction) if self.parent else []
        return below + [rest for name, rest in self.instructions if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]

    @property
    def environment(self) -> dict[str, str]:
        pairs = " ".join(self.all("ENV")).split()
        return {name: value for name, _, value in (pair.partition("=") for pair in pairs)}

    @property
    def command(self) -> list[str]:
        words: list[str] = json.loads(self.last("CMD"))
        return words

    @property
    def health_check(self) -> list[str]:
        words: list[str] = json.loads(self.last("HEALTHCHECK").partition("CMD ")[2])
        return words


def stages() -> dict[str, Stage]:
    """Every stage of the Dockerfile by name, in its order."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE.read_text())
    found: dict[str, Stage] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = Stage(name, base, parent=found.get(base))
        elif found:
            next(reversed(found.values())).instructions.append((instruction, rest))
    return found
