"""The network of OpenVLA (Kim et al., arXiv 2406.09246): two vision towers, a projector, a Llama decoder.

Names of the modules are those of the released tensors.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.initialization import no_init_weights

from gpu_consumers.policies.openvla.checkpoint import Architecture


class VisionTowers(nn.Module):
    """Patches of one or two timm transformers, after their second-to-last block and without its norm."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.featurizer = _tower(architecture, 0)
        self.embed_dim = int(self.featurizer.embed_dim)
        self.patches = int(self.featurizer.patch_embed.num_patches)
        if architecture.fused:
            self.fused_featurizer = _tower(architecture, 1)
            self.embed_dim += int(self.fused_featurizer.embed_dim)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """(batch, 3 x towers, side, side) -> (batch, patches, width of the towers together)."""
        first = _features(self.featurizer, pictures[:, :3])
        if not hasattr(self, "fused_featurizer"):
            return first
        return torch.cat([first, _features(self.fused_featurizer, pictures[:, 3:])], dim=2)


class Projector(nn.Module):
    """From the towers' width to the decoder's: three layers after two towers, two layers after one."""

    def __init__(self, vision_dim: int, text_dim: int, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        inner = 4 * vision_dim if fused else text_dim
        self.fc1 = nn.Linear(vision_dim, inner)
        self.fc2 = nn.Linear(inner, text_dim)
        if fused:
            self.fc3 = nn.Linear(text_dim, text_dim)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        projected: torch.Tensor = self.fc2(functional.gelu(self.fc1(patches)))
        return self.fc3(functional.gelu(projected)) if self.fused else projected


class OpenVLANetwork(nn.Module):
    """Greedy action tokens for a batch whose prompts may differ in length."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.vision_backbone = VisionTowers(architecture)
        text: Any = LlamaConfig(**architecture.text_config)
        self.projector = Projector(self.vision_backbone.embed_dim, int(text.hidden_size), fused=architecture.fused)
        decoder: Any = LlamaForCausalLM
        self.language_model = decoder(text)

    def generate(
        self, pictures: torch.Tensor, words: torch.Tensor, places: torch.Tensor, mask: torch.Tensor, *, steps: int
    ) -> torch.Tensor:
        """Logits (batch, steps, vocabulary) of the tokens that a greedy decoder picks one after another.

        pictures: (batch, 3 x towers, side, side); words, places and mask: the rows that `rows.py` lays out. All work is
        of a shape that the inputs' shapes give, so that it can be recorded.
        """
        decoder: Any = self.language_model.model
        patches = self.projector(self.vision_backbone(pictures.to(self.projector.fc1.weight.dtype)))
        known = decoder.embed_tokens(words)
        source = torch.cat([torch.zeros_like(known[:, :1]), known, patches.to(known.dtype)], dim=1)
        embeddings = source.gather(1, places[..., None].expand(-1, -1, source.shape[2]))
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        past: Any = None
        logits: list[torch.Tensor] = []
        for step in range(steps):
            out = decoder(
                inputs_embeds=embeddings,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=past,
                use_cache=True,
            )
            past = out.past_key_values
            logits.append(self.language_model.lm_head(out.last_hidden_state[:, -1]))
            if step + 1 < steps:
                embeddings = decoder.embed_tokens(logits[-1].argmax(dim=-1))[:, None]
                mask = functional.pad(mask, (0, 1), value=1)
                positions = positions[:, -1:] + 1
        return torch.stack(logits, dim=1)


def build(architecture: Architecture) -> OpenVLANetwork:
    """The network without values: they are put in by `load_into`."""
    with no_init_weights():
        return OpenVLANetwork(architecture)


def _tower(architecture: Architecture, index: int) -> Any:
    # Exact GELU where nothing else is said: newer timm gives some SigLIP variants another one by themselves.
    activation = architecture.timm_override_act_layers[index] or "gelu"
    with torch.device("meta"):
        tower: Any = timm.create_model(
            architecture.timm_model_ids[index],
            pretrained=False,
            num_classes=0,
            img_size=architecture.image_sizes[index],
            act_layer=activation,
            **architecture.timm_model_args[index],
        )
    tower.prune_intermediate_layers([len(tower.blocks) - 2], prune_norm=True, prune_head=True)
    return tower


def _features(tower: Any, pictures: torch.Tensor) -> torch.Tensor:
    """Patches alone: class and register tokens left out."""
    features: torch.Tensor = tower.forward_features(pictures)
    return features[:, tower.num_prefix_tokens :]
