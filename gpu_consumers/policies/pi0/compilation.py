"""torch.compile for PI0 on a GPU: fixed shapes only, so batches are padded up to the sizes of the card."""

from __future__ import annotations

from typing import Any


def compile_parts(model: Any, *, backend: str = "inductor") -> None:
    """Compile, in place, what takes the time: vision tower, language model and action expert.

    The loop around them picks pictures by their masks, which is no graph of fixed shape.
    """
    for part in (model.model.vlm.vision_tower, model.model.vlm.language_model, model.model.dit):
        part.compile(backend=backend, dynamic=False)
