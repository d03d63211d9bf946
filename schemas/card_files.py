"""Reads cards from YAML files: `<folder>/embodiments/*.yaml` and `<folder>/models/*.yaml`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.cards import CardSet, EmbodimentCard, ModelCard

#: What pydantic puts before the sentence of a validator of ours.
_PREFIX = "Value error, "


class CardError(Exception):
    """A card file cannot be used; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class CardProblem:
    """One thing that is wrong with a card file: its line, counted from 1, and the field as a path."""

    line: int
    field: str
    detail: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.field}: {self.detail}" if self.field else f"line {self.line}: {self.detail}"


def check_embodiment_file(path: Path) -> EmbodimentCard | list[CardProblem]:
    """The card of a file, or everything that is wrong with it. Raises CardError for a file that cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
        tree, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        return [CardProblem(line, "", f"this is not YAML: {error.problem}")]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CardError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        return [CardProblem(1, "", "a card is a mapping of fields, see an existing card")]
    try:
        return EmbodimentCard.model_validate(content)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        # A list whose items are wrong is called too short besides: the items say it all.
        causes = [item for item in errors if not any(other["loc"][: len(item["loc"])] == item["loc"]
                  and len(other["loc"]) > len(item["loc"]) for other in errors)]  # fmt: skip
        return [
            CardProblem(_line(tree, item["loc"]), ".".join(map(str, item["loc"])), item["msg"].removeprefix(_PREFIX))
            for item in causes
        ]


def _line(node: Any, location: tuple[int | str, ...]) -> int:
    """Where a field stands; where it is missing, what it is missing in."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def load_cards(folder: Path) -> CardSet:
    """All cards below a folder. Raises CardError for a missing folder or a card that does not fit."""
    if not folder.is_dir():
        raise CardError(f"no card folder at {folder}: set CARDS_DIR to a folder with models/ and embodiments/")
    embodiments = [load_embodiment_card(path) for path in sorted(folder.glob("embodiments/*.yaml"))]
    models = [load_model_card(path) for path in sorted(folder.glob("models/*.yaml"))]
    try:
        return CardSet(models=tuple(models), embodiments=tuple(embodiments))
    except ValidationError as error:
        raise CardError(f"the cards in {folder} do not fit together: {_reasons(error)}") from error


def load_embodiment_card(path: Path) -> EmbodimentCard:
    try:
        return EmbodimentCard.model_validate(_read(path))
    except ValidationError as error:
        raise CardError(f"{path}: {_reasons(error)}") from error


def load_model_card(path: Path) -> ModelCard:
    try:
        return ModelCard.model_validate({**_read(path), "path": path.resolve()})
    except ValidationError as error:
        raise CardError(f"{path}: {_reasons(error)}") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise CardError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise CardError(f"{path}: a card is a mapping of fields, see an existing card")
    return content


def _reasons(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))}: {item['msg']}" if item["loc"] else item["msg"] for item in error.errors()
    )
