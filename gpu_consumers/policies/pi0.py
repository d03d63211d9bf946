"""PI0 on transformers' native PI0ForConditionalGeneration (Black et al., arXiv 2410.24164).

Weights are a folder with config.json, model.safetensors and tokenizer.json. Nothing else is read from it: no pickle, no
code. transformers' own PI0 processor is bypassed: its statistics are fixed; ours stand in the model card.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from transformers import PI0ForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from gpu_consumers.policies.contract import AS_THE_CARD_SAYS, LoadOptions, Observation, PolicyError
from runtime.errors import Fatal
from schemas.cards import ModelCard

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_FILES = ("config.json", "model.safetensors", "tokenizer.json")


class PI0PolicyConfig(BaseModel):
    """The card's `policy_config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Euler steps of the flow from noise to actions.
    denoising_steps: int = Field(default=10, ge=1, le=100)
    #: Text is padded on the right to this many tokens.
    max_text_tokens: int = Field(default=48, ge=1, le=1024)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One observation as tensors, scaled as the model wants them.

    images: (cameras, 3, side, side) in -1..1; tokens and mask: (length,); state: (max_state_dim,);
    noise: (chunk_size, max_action_dim).
    """

    images: torch.Tensor
    tokens: torch.Tensor
    mask: torch.Tensor
    state: torch.Tensor
    noise: torch.Tensor


class PI0Policy:
    """Batched PI0. Each request brings its own noise, so a result is the same to rounding in any batch."""

    def __init__(self, card: ModelCard, device: str = "cpu", options: LoadOptions = AS_THE_CARD_SAYS) -> None:
        self.card = card
        self.device = device
        self._config = PI0PolicyConfig.model_validate(card.policy_config)
        folder = _checked_folder(card)
        self.revision = _digest(folder / "model.safetensors")
        self._dtype = _DTYPES[card.dtype.value]
        self._model = _load_model(folder, self._dtype, card.deployment).to(device).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        vision = self._model.config.vlm_config.vision_config
        self._side_px = int(vision.image_size)
        self._image_tokens = (self._side_px // int(vision.patch_size)) ** 2 * len(card.cameras)
        self._image_token_id = int(self._model.config.vlm_config.image_token_id)
        self._check_card()
        norm = card.normalisation
        self._state_mean, self._state_std = _statistics(norm.state_mean, norm.state_std, card.state_dim)
        self._action_mean, self._action_std = _statistics(norm.action_mean, norm.action_std, card.action_dim)

    def prepare(self, observation: Observation) -> Prepared:
        images = torch.stack([self._image(observation, camera) for camera in self.card.cameras])
        if observation.state.shape != (self.card.state_dim,):
            raise PolicyError(f"the state has {observation.state.shape} values, {self.card.state_dim} are wanted")
        tokens, mask = self._tokens(observation.instruction)
        config = self._model.config
        state = torch.zeros(config.max_state_dim)
        state[: self.card.state_dim] = torch.from_numpy((observation.state - self._state_mean) / self._state_std)
        generator = torch.Generator().manual_seed(observation.seed % 2**63)
        noise = torch.randn(config.chunk_size, config.max_action_dim, generator=generator)
        return Prepared(images, tokens, mask, state, noise)

    @torch.inference_mode()
    def infer(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Actions as the model scales them, float32 (batch, chunk, max_action_dim), on the CPU."""
        images = torch.stack([item.images for item in batch]).to(self.device, self._dtype)
        actions = self._model.sample_actions(
            state=torch.stack([item.state for item in batch]).to(self.device, self._dtype),
            input_ids=torch.stack([item.tokens for item in batch]).to(self.device),
            # Without a mask positions shift and other actions come out, silently.
            attention_mask=torch.stack([item.mask for item in batch]).to(self.device),
            pixel_values=images,
            pixel_attention_mask=torch.ones(images.shape[:2], dtype=torch.bool, device=self.device),
            noise=torch.stack([item.noise for item in batch]).to(self.device, self._dtype),
            num_steps=self._config.denoising_steps,
        )
        on_cpu: torch.Tensor = actions.float().cpu()
        return on_cpu

    def finish(self, raw: torch.Tensor, size: int) -> list[NDArray[np.float32]]:
        scaled = raw[:size, : self.card.horizon, : self.card.action_dim].numpy()
        return list((scaled * self._action_std + self._action_mean).astype(np.float32))

    def _image(self, observation: Observation, camera: str) -> torch.Tensor:
        pixels = observation.images.get(camera)
        if pixels is None:
            raise PolicyError(f"no image of camera {camera}")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise PolicyError(f"camera {camera}: an image is uint8 (height, width, 3), this is {pixels.shape}")
        small = Image.fromarray(pixels).resize((self._side_px, self._side_px), Image.Resampling.BOX)
        # -1..1: images in 0..1 raise nothing in the model and give other actions.
        scaled = np.asarray(small, np.float32) / 127.5 - 1.0
        return torch.from_numpy(scaled).permute(2, 0, 1)

    def _tokens(self, instruction: str) -> tuple[torch.Tensor, torch.Tensor]:
        text = self._tokenizer.encode(instruction.lower()).ids[: self._config.max_text_tokens]
        padding = self._config.max_text_tokens - len(text)
        tokens = [self._image_token_id] * self._image_tokens + text + [0] * padding
        mask = [1] * (self._image_tokens + len(text)) + [0] * padding
        return torch.tensor(tokens), torch.tensor(mask)

    def _check_card(self) -> None:
        config, card = self._model.config, self.card
        wanted = (card.horizon <= config.chunk_size, card.action_dim <= config.max_action_dim)
        if not all(wanted) or card.state_dim > config.max_state_dim:
            raise Fatal(
                f"deployment {card.deployment}: the card wants {card.horizon} steps of {card.action_dim} actions from "
                f"{card.state_dim} states, the weights give {config.chunk_size} of {config.max_action_dim} from "
                f"{config.max_state_dim}"
            )


def _checked_folder(card: ModelCard) -> Path:
    folder = card.weights_path
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise Fatal(f"deployment {card.deployment}: {folder} lacks {', '.join(missing)}")
    return folder


def _load_model(folder: Path, dtype: torch.dtype, deployment: str) -> Any:
    # What transformers warns of is an error below, or (`crop`) about a version that we do not run.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    disable_progress_bar()  # type: ignore[no-untyped-call]
    # Any: the annotations of transformers know neither the pair that comes back nor plain tensors as arguments.
    loader: Any = PI0ForConditionalGeneration
    model, report = loader.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
    )
    # transformers makes missing tensors up at random and goes on.
    if report["missing_keys"]:
        raise Fatal(
            f"deployment {deployment}: {folder / 'model.safetensors'} lacks {', '.join(sorted(report['missing_keys']))}"
        )
    return model


def _digest(path: Path) -> str:
    with path.open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()[:16]


def _statistics(
    mean: tuple[float, ...], std: tuple[float, ...], dim: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    means = np.asarray(mean or [0.0] * dim, np.float32)
    stds = np.asarray(std or [1.0] * dim, np.float32)
    if means.shape != (dim,) or stds.shape != (dim,) or not (stds > 0).all():
        raise Fatal(f"normalisation: give {dim} means and {dim} positive deviations, or none")
    return means, stds
