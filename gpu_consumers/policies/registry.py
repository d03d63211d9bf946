"""Policies by the name that a model card uses. Code is named as a string: torch is imported only by who needs it."""

from __future__ import annotations

import importlib
from typing import cast

from gpu_consumers.policies.contract import AS_THE_CARD_SAYS, LoadOptions, Policy
from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.cards import DType, ModelCard

_POLICIES = {
    "pi0": "gpu_consumers.policies.pi0.policy:PI0Policy",
    "openvla": "gpu_consumers.policies.openvla.policy:OpenVLAPolicy",
    "openpi_remote": "gpu_consumers.policies.openpi_remote:OpenpiRemotePolicy",
    "deterministic": "gpu_consumers.policies.deterministic:DeterministicPolicy",
}


def load_options(settings: Settings) -> LoadOptions:
    """What the environment says about loading: POLICY_API_KEY, MODEL_DTYPE and LOW_CPU_MEM_USAGE."""
    dtype = DType(settings.model_dtype) if settings.model_dtype else None
    return LoadOptions(api_key=settings.policy_api_key, dtype=dtype, low_cpu_memory=settings.low_cpu_mem_usage)


def load_policy(card: ModelCard, device: str, options: LoadOptions = AS_THE_CARD_SAYS) -> Policy:
    """Build a card's policy with its weights on `device` ("cpu", "cuda:0"). Raises Fatal with what to do."""
    target = _POLICIES.get(card.policy)
    if target is None:
        known = ", ".join(sorted(_POLICIES))
        raise Fatal(f"deployment {card.deployment} wants policy {card.policy!r}; known are: {known}")
    module, _, name = target.partition(":")
    try:
        return cast(Policy, getattr(importlib.import_module(module), name)(card, device, options))
    except ValueError as error:  # pydantic's ValidationError, too
        raise Fatal(f"deployment {card.deployment}: its card does not fit policy {card.policy}: {error}") from error
