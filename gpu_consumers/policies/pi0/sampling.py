"""PI0's sampling with work of fixed shape, so that it can be recorded: the same numbers as `sample_actions`."""

from __future__ import annotations

from typing import Any

import torch


def sample_actions(
    model: Any,
    images: torch.Tensor,
    present: torch.Tensor,
    tokens: torch.Tensor,
    mask: torch.Tensor,
    state: torch.Tensor,
    noise: torch.Tensor,
    *,
    steps: int,
) -> torch.Tensor:
    """Actions (batch, chunk, max_action_dim) by `steps` Euler steps of the flow (arXiv 2410.24164, section IV).

    images: (batch, cameras, 3, side, side) in -1..1; present: (batch, cameras) bool; tokens and mask: (batch, length),
    in which the image tokens of the present cameras come first; state: (batch, max_state_dim).
    """
    dtype = model.action_out_proj.weight.dtype
    state, noise = state.to(dtype), noise.to(dtype)
    prefix = _prefix(model, images.to(dtype), present, tokens)
    past = model.model.vlm(
        inputs_embeds=prefix,
        attention_mask=mask,
        position_ids=mask.cumsum(-1) - 1,
        token_type_ids=torch.zeros_like(tokens),
        use_cache=True,
        return_dict=True,
    ).past_key_values
    for step in range(steps):
        # Filled on the device: a tensor made of a number on the host would be copied, and that cannot be recorded.
        time = torch.full((len(tokens),), 1.0 - step / steps, dtype=torch.float32, device=tokens.device)
        velocity = model(
            state=state, noise=noise, timestep=time, attention_mask=mask, past_key_values=past, return_dict=True
        ).logits
        # The state and the actions of this step; the next step sees the prefix alone.
        past.crop(-(1 + noise.shape[1]))
        noise = noise - velocity / steps
    return noise.float()


def _prefix(model: Any, images: torch.Tensor, present: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Embeddings (batch, length, width), patches in the places of the image tokens."""
    vlm = model.model.vlm
    patches = vlm.get_image_features(images.flatten(0, 1), return_dict=True).pooler_output
    patches = patches.reshape(*images.shape[:2], *patches.shape[1:])
    # Present cameras first, in their order, as their tokens stand.
    order = present.logical_not().long().argsort(dim=1, stable=True)
    patches = patches.gather(1, order[:, :, None, None].expand_as(patches)).flatten(1, 2)
    is_image = tokens == model.config.vlm_config.image_token_id
    # The image token has no row in the embedding.
    words = vlm.get_input_embeddings()(tokens.masked_fill(is_image, 0))
    count = patches.shape[1]
    head = torch.where(is_image[:, :count, None], patches.to(words.dtype), words[:, :count])
    return torch.cat([head, words[:, count:]], dim=1)
