"""PI0 on transformers' native PI0ForConditionalGeneration (Black et al., arXiv 2410.24164).

Weights are a folder with config.json, safetensors and PaliGemma's tokenizer.json, in transformers' layout or lerobot's.
Nothing else is read from it: no pickle, no code. transformers' own PI0 processor is bypassed: its statistics are fixed;
ours stand in the model card or in the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer
from transformers import PI0ForConditionalGeneration
from transformers.initialization import no_init_weights

from gpu_consumers.policies.contract import AS_THE_CARD_SAYS, LoadOptions, Observation, PolicyError
from gpu_consumers.policies.graphs import GraphedCall, filled_up
from gpu_consumers.policies.pi0.checkpoint import Layout, Names, read_config, stored_statistics
from gpu_consumers.policies.pi0.compilation import compile_parts
from gpu_consumers.policies.pi0.images import padded, stretched
from gpu_consumers.policies.pi0.sampling import sample_actions
from gpu_consumers.policies.scaling import Scaling, identity, of_card
from gpu_consumers.policies.weights import WeightFiles, load_into, torch_dtype
from runtime.errors import Fatal
from schemas.cards import ModelCard


class PI0PolicyConfig(BaseModel):
    """The card's `policy_config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Euler steps of the flow from noise to actions.
    denoising_steps: int = Field(default=10, ge=1, le=100)
    #: Text is padded on the right to this many tokens.
    max_text_tokens: int = Field(default=48, ge=1, le=1024)
    #: How pictures become squares. None: `pad` for lerobot's layout, `stretch` for transformers'.
    images: Literal["stretch", "pad"] | None = None
    #: `paligemma`: as written, a newline at the end. `lower`: in lower case. None: by layout, in that order.
    text: Literal["paligemma", "lower"] | None = None
    #: Record CUDA graphs on a GPU: batches are filled up to the next of the card's sizes. Without effect on a CPU.
    graphs: bool = True
    #: torch.compile on a GPU: the first batch of each size takes minutes. Without effect on a CPU.
    compile: bool = False


@dataclass(frozen=True, slots=True)
class Prepared:
    """One observation as tensors, scaled as the model wants them.

    images: (cameras, 3, side, side) in -1..1; present: (cameras,); tokens and mask: (length,);
    state: (max_state_dim,); noise: (chunk_size, max_action_dim).
    """

    images: torch.Tensor
    present: torch.Tensor
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
        files = WeightFiles(card, others=("config.json", "tokenizer.json"))
        architecture, layout = read_config(files)
        _check_card(card, architecture)
        self._state, self._action = _scalings(card, files, layout)
        self._dtype = torch_dtype(card, options)
        self.model = _load_model(architecture, files, self._dtype, device, options)
        self._tokenizer = Tokenizer.from_file(str(files.folder / "tokenizer.json"))
        native = layout is Layout.TRANSFORMERS
        self._in_lower_case = (self._config.text or ("lower" if native else "paligemma")) == "lower"
        images = self._config.images or ("stretch" if native else "pad")
        self._square = stretched if images == "stretch" else padded
        self._cameras = card.cameras + card.optional_cameras
        vision = self.model.config.vlm_config.vision_config
        self._side_px = int(vision.image_size)
        self._image_tokens = (self._side_px // int(vision.patch_size)) ** 2
        self._image_token_id = int(self.model.config.vlm_config.image_token_id)
        compiled = self._config.compile and device.startswith("cuda")
        if compiled:
            compile_parts(self.model)
        sample = partial(sample_actions, self.model, steps=self._config.denoising_steps)
        self._sample = GraphedCall(sample, device, record=self._config.graphs)
        self._fixed_sizes = compiled or self._sample.records
        self.revision = files.digest()

    def prepare(self, observation: Observation) -> Prepared:
        if observation.state.shape != (self.card.state_dim,):
            raise PolicyError(f"the state has {observation.state.shape} values, {self.card.state_dim} are wanted")
        images = torch.full((len(self._cameras), 3, self._side_px, self._side_px), -1.0)
        present = torch.zeros(len(self._cameras), dtype=torch.bool)
        for index, camera in enumerate(self._cameras):
            pixels = observation.images.get(camera)
            if pixels is not None:
                images[index] = self._image(pixels, camera)
                present[index] = True
            elif camera in self.card.cameras:
                raise PolicyError(f"no image of camera {camera}")
        tokens, mask = self._tokens(observation.instruction, int(present.sum()))
        config = self.model.config
        state = torch.zeros(config.max_state_dim)
        state[: self.card.state_dim] = torch.from_numpy(self._state.scaled(observation.state))
        generator = torch.Generator().manual_seed(observation.seed % 2**63)
        noise = torch.randn(config.chunk_size, config.max_action_dim, generator=generator)
        return Prepared(images, present, tokens, mask, state, noise)

    @torch.inference_mode()
    def infer(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """Actions as the model scales them, float32 (batch, chunk, max_action_dim), on the CPU."""
        items = filled_up(batch, self.card.batch_sizes) if self._fixed_sizes else batch
        actions = self._sample(
            torch.stack([item.images for item in items]),
            torch.stack([item.present for item in items]),
            torch.stack([item.tokens for item in items]),
            torch.stack([item.mask for item in items]),
            torch.stack([item.state for item in items]),
            torch.stack([item.noise for item in items]),
        )
        on_cpu: torch.Tensor = actions[: len(batch)].cpu()
        return on_cpu

    def finish(self, raw: torch.Tensor, size: int) -> list[NDArray[np.float32]]:
        scaled = raw[:size, : self.card.horizon, : self.card.action_dim].numpy()
        return list(self._action.physical(scaled))

    def _image(self, pixels: NDArray[np.uint8], camera: str) -> torch.Tensor:
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise PolicyError(f"camera {camera}: an image is uint8 (height, width, 3), this is {pixels.shape}")
        return self._square(pixels, self._side_px)

    def _tokens(self, instruction: str, cameras: int) -> tuple[torch.Tensor, torch.Tensor]:
        if self._in_lower_case:
            text = instruction.lower()
        else:
            text = instruction if instruction.endswith("\n") else f"{instruction}\n"
        words = self._tokenizer.encode(text).ids[: self._config.max_text_tokens]
        used = [self._image_token_id] * (self._image_tokens * cameras) + words
        length = self._image_tokens * len(self._cameras) + self._config.max_text_tokens
        padding = [0] * (length - len(used))
        return torch.tensor(used + padding), torch.tensor([1] * len(used) + padding)


def _check_card(card: ModelCard, config: Any) -> None:
    wanted = (card.horizon <= config.chunk_size, card.action_dim <= config.max_action_dim)
    if not all(wanted) or card.state_dim > config.max_state_dim:
        raise Fatal(
            f"deployment {card.deployment}: the card wants {card.horizon} steps of {card.action_dim} actions from "
            f"{card.state_dim} states, the weights give {config.chunk_size} of {config.max_action_dim} from "
            f"{config.max_state_dim}"
        )


def _load_model(architecture: Any, files: WeightFiles, dtype: torch.dtype, device: str, options: LoadOptions) -> Any:
    # Its cache warns of a change in 5.18, a version that we do not run.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    # Parameters without memory of their own: the stored tensors take their places.
    with no_init_weights():
        model = PI0ForConditionalGeneration(architecture)
    # The expert is fed with embeddings; a vocabulary of 257152 would take half a gigabyte for nothing.
    model.model.dit.embed_tokens = None
    load_into(model, files, rename=Names(files.names()), dtype=dtype, device=device, options=options)
    return model


def _scalings(card: ModelCard, files: WeightFiles, layout: Layout) -> tuple[Scaling, Scaling]:
    """The card's word goes before the folder's."""
    norm = card.normalisation
    state = of_card(card.state_dim, mean=norm.state_mean, std=norm.state_std, q01=norm.state_q01, q99=norm.state_q99)
    action = of_card(
        card.action_dim, mean=norm.action_mean, std=norm.action_std, q01=norm.action_q01, q99=norm.action_q99
    )
    stored = stored_statistics(files) if layout is Layout.LEROBOT else (None, None)
    state = state or _fitting(stored[0], card.state_dim, "state", card) or identity(card.state_dim)
    action = action or _fitting(stored[1], card.action_dim, "action", card) or identity(card.action_dim)
    return state, action


def _fitting(scaling: Scaling | None, dim: int, what: str, card: ModelCard) -> Scaling | None:
    if scaling is not None and scaling.dim != dim:
        raise Fatal(
            f"deployment {card.deployment}: the folder's {what} statistics have {scaling.dim} values, the card has "
            f"{dim}: correct the card's {what}_dim, or give its own normalisation"
        )
    return scaling
