"""The figures that the policy's card states, which the fleet is measured against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVALUATION = Path(__file__).resolve().parent.parent / "tabletop" / "policy" / "evaluation.json"


@dataclass(frozen=True, slots=True)
class CardFigures:
    """Success 0..1 over all held-out episodes and by task."""

    success: float
    per_task: Mapping[str, float]


def read_card(path: Path = EVALUATION) -> CardFigures:
    """Raises FileNotFoundError, or ValueError for a file without these figures."""
    document = json.loads(path.read_text(encoding="utf-8"))
    try:
        per_task = {str(task): _share(value) for task, value in document["per_task"].items()}
        return CardFigures(_share(document["success"]), per_task)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} states no success: evaluate the policy again ({error})") from error


def _share(value: Any) -> float:
    """A share, given as a number or as an object that holds it under `success`."""
    share = float(value["success"] if isinstance(value, dict) else value)
    if not 0 <= share <= 1:
        raise ValueError(f"success {share} is not a share between 0 and 1")
    return share
