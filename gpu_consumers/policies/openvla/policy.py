"""OpenVLA (Kim et al., arXiv 2406.09246), native: no code comes from the checkpoint, and batches may be larger than 1.

Weights are a folder in the released layout: config.json, preprocessor_config.json, tokenizer.json, safetensors, and for
fine-tunes dataset_statistics.json. One camera, one action a request, greedy: neither state nor seed play a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from tokenizers import Tokenizer

from gpu_consumers.policies.contract import AS_THE_CARD_SAYS, LoadOptions, Observation, PolicyError
from gpu_consumers.policies.graphs import GraphedCall, filled_up
from gpu_consumers.policies.openvla.actions import ActionDecoder
from gpu_consumers.policies.openvla.checkpoint import Names, read_architecture, read_preprocessing, read_statistics
from gpu_consumers.policies.openvla.images import PictureTransform
from gpu_consumers.policies.openvla.network import build
from gpu_consumers.policies.openvla.rows import lay_out
from gpu_consumers.policies.weights import WeightFiles, load_into, torch_dtype
from runtime.errors import Fatal
from schemas.cards import ModelCard

_PROMPTS = {
    "openvla": "In: What action should the robot take to {instruction}?\nOut:",
    "openvla-v01": (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
        "USER: What action should the robot take to {instruction}? ASSISTANT:"
    ),
}
_BEGIN = 1
#: Prompts are padded to multiples of so many tokens where graphs are recorded: each length is a recording.
_LENGTHS = 32
#: Llama's empty token: training always had it between prompt and actions, its tokenizer does not put it there.
_EMPTY = 29871


class OpenVLAPolicyConfig(BaseModel):
    """The card's `policy_config`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: Data set whose statistics scale the actions back. None: that of the card's pairings, else the only one that the
    #: checkpoint has.
    unnorm_key: str | None = None
    prompt: Literal["openvla", "openvla-v01"] = "openvla"
    #: Longest prompt, instruction and frame together.
    max_text_tokens: int = Field(default=256, ge=16, le=2048)
    #: Record CUDA graphs on a GPU: batches are filled up to the next of the card's sizes. Without effect on a CPU.
    graphs: bool = True


@dataclass(frozen=True, slots=True)
class Prepared:
    """picture: (3 x towers, side, side), scaled; tokens: of the whole prompt, begin token first."""

    picture: torch.Tensor
    tokens: list[int]


class OpenVLAPolicy:
    """Batched OpenVLA: in float32 the tokens of a batch are those of its single requests."""

    def __init__(self, card: ModelCard, device: str = "cpu", options: LoadOptions = AS_THE_CARD_SAYS) -> None:
        self.card = card
        self.device = device
        self._config = OpenVLAPolicyConfig.model_validate(card.policy_config)
        files = WeightFiles(card, others=("config.json", "preprocessor_config.json", "tokenizer.json"))
        architecture = read_architecture(files)
        statistics = read_statistics(files, architecture, self._config.unnorm_key or _paired_key(card))
        self._transform = PictureTransform(read_preprocessing(files, len(architecture.timm_model_ids)))
        self._network = build(architecture)
        vocabulary = int(self._network.language_model.config.vocab_size) - architecture.pad_to_multiple_of
        self._decode = ActionDecoder(statistics, vocabulary=vocabulary, bins=architecture.n_action_bins)
        self._check_card()
        self._dtype = torch_dtype(card, options)
        load_into(self._network, files, rename=Names(files.names()), dtype=self._dtype, device=device, options=options)
        self._tokenizer = Tokenizer.from_file(str(files.folder / "tokenizer.json"))
        used = self._network.vision_backbone.patches + self._decode.dim
        generate = partial(self._network.generate, steps=self._decode.dim)
        self._generate = GraphedCall(generate, device, record=self._config.graphs)
        self._max_text_tokens = min(self._config.max_text_tokens, architecture.llm_max_length - used)
        self.revision = files.digest()

    def prepare(self, observation: Observation) -> Prepared:
        camera = self.card.cameras[0]
        pixels = observation.images.get(camera)
        if pixels is None:
            raise PolicyError(f"no image of camera {camera}")
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise PolicyError(f"camera {camera}: an image is uint8 (height, width, 3), this is {pixels.shape}")
        return Prepared(self._transform(pixels), self._tokens(observation.instruction))

    def infer(self, batch: Sequence[Prepared]) -> NDArray[np.int64]:
        """Action tokens (batch, action_dim)."""
        tokens: NDArray[np.int64] = self.logits(batch).argmax(dim=-1).cpu().numpy()
        return tokens

    @torch.inference_mode()
    def logits(self, batch: Sequence[Prepared]) -> torch.Tensor:
        """(batch, action_dim, vocabulary) on the device; each step continues with the likeliest token of the last."""
        records = self._generate.records
        items = filled_up(batch, self.card.batch_sizes) if records else batch
        pictures = torch.stack([item.picture for item in items])
        patches = self._network.vision_backbone.patches
        rows = lay_out([item.tokens for item in items], patches, multiple=_LENGTHS if records else 1)
        return self._generate(pictures, *rows)[: len(batch)]

    def finish(self, raw: NDArray[np.int64], size: int) -> list[NDArray[np.float32]]:
        return [actions[None].astype(np.float32) for actions in self._decode(raw[:size])]

    def _tokens(self, instruction: str) -> list[int]:
        prompt = _PROMPTS[self._config.prompt].format(instruction=instruction.lower())
        text = self._tokenizer.encode(prompt, add_special_tokens=False).ids
        tokens = [_BEGIN, *text] if text[-1:] == [_EMPTY] else [_BEGIN, *text, _EMPTY]
        if len(tokens) > self._max_text_tokens:
            raise PolicyError(
                f"the instruction makes a prompt of {len(tokens)} tokens, at most {self._max_text_tokens}: shorten it"
            )
        return tokens

    def _check_card(self) -> None:
        card = self.card
        if len(card.cameras) != 1 or card.optional_cameras or card.horizon != 1 or card.action_dim != self._decode.dim:
            raise Fatal(
                f"deployment {card.deployment}: openvla gives one step of {self._decode.dim} actions from one camera, "
                f"the card wants {card.horizon} of {card.action_dim} from {len(card.cameras + card.optional_cameras)}"
            )


def _paired_key(card: ModelCard) -> str | None:
    keys = {pairing.unnorm_key for pairing in card.pairings.values() if pairing.unnorm_key}
    if len(keys) > 1:
        raise Fatal(
            f"deployment {card.deployment}: its pairings name the data sets {', '.join(sorted(keys))}; a deployment "
            "has one, so serve the others by deployments of their own"
        )
    return next(iter(keys), None)
