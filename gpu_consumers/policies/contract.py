"""What a policy is: three small steps that the worker runs in its three stages.

`prepare` runs on the fetch stage (CPU, any thread), `infer` on the only thread that touches the device,
`finish` on the publish stage (CPU). A policy keeps no state between requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import SecretStr

from schemas.cards import DType, ModelCard


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One decoded request.

    images: camera name -> uint8 (height, width, 3) RGB, at the size that the robot sent.
    state: float32 (state_dim,), physical units of the embodiment card.
    seed: makes the noise, so that a result does not depend on the batch that it rode in.
    """

    request_id: str
    instruction: str
    images: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32]
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """What this process brings to loading, whatever the card. A policy takes what concerns it."""

    #: For the server that a policy runs on; empty: none.
    api_key: SecretStr = field(default_factory=lambda: SecretStr(""))
    #: Precision of weights in place of the card's.
    dtype: DType | None = None
    #: Take tensors one by one from the mapped file to the device. Otherwise a file is read into memory first, which
    #: is faster from network disks and takes its size in memory.
    low_cpu_memory: bool = True


AS_THE_CARD_SAYS = LoadOptions()


class PolicyError(Exception):
    """This one observation cannot be served; the rest of its batch can. The message goes to the robot."""


class Policy(Protocol):
    """Prepared and Raw are the policy's own business; the worker passes them along untouched.

    Built as `policy(card, device, options)`; raises Fatal with what to do where the weights do not fit the card.
    """

    card: ModelCard
    #: Hash of the weights, 16 hex digits: names the model revision in every result.
    revision: str
    #: Where `infer` runs, as torch names it ("cpu", "cuda:0").
    device: str

    def prepare(self, observation: Observation) -> Any:
        """Everything that needs no device. Raises PolicyError for an observation that it cannot take."""
        ...

    def infer(self, batch: Sequence[Any]) -> Any:
        """Run the device on 1..max(card.batch_sizes) prepared observations."""
        ...

    def finish(self, raw: Any, size: int) -> list[NDArray[np.float32]]:
        """Action chunks in physical units, one (horizon, action_dim) float32 array for each of `size` requests."""
        ...


@runtime_checkable
class RemotePolicy(Protocol):
    """A policy that runs elsewhere, besides: its `infer` raises Retry while its server is away, and is called again."""

    def probe(self) -> None:
        """Whether the server is there, without an observation. Raises Retry while it is away."""
        ...

    def close(self) -> None:
        """Give up what is with the server; called once, at the end."""
        ...
