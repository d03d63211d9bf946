"""torch.compile for PI0 on a GPU: fixed shapes only, so batches are padded up to the sizes of the card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

Item = TypeVar("Item")


def compile_parts(model: Any, *, backend: str = "inductor") -> None:
    """Compile, in place, what takes the time: vision tower, language model and action expert.

    The loop around them picks pictures by their masks, which is no graph of fixed shape.
    """
    for part in (model.model.vlm.vision_tower, model.model.vlm.language_model, model.model.dit):
        part.compile(backend=backend, dynamic=False)


def filled_up(batch: Sequence[Item], sizes: Sequence[int]) -> list[Item]:
    """The batch and repeats of its last item, up to the next of the ascending `sizes`; larger ones stay as they are."""
    size = next((size for size in sizes if size >= len(batch)), len(batch))
    return [*batch, *[batch[-1]] * (size - len(batch))]
