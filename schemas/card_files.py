"""Reads cards from YAML files: `<folder>/embodiments/*.yaml` and `<folder>/models/*.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.cards import CardSet, EmbodimentCard, ModelCard


class CardError(Exception):
    """A card file cannot be used; the message names the file and what is wrong with it."""


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
