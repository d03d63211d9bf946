"""A policy that runs elsewhere: on any server of openpi's wire (openpi, vLLM-Omni, SGLang), behind our log and gates.

Normalisation, chunking and noise are the server's. A server that takes one request at a time is asked a batch over as
many connections. While it is away nothing is refused for it: requests wait for it until their deadline, and the worker
is not counted as live.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpu_consumers.openpi_client import Endpoint, OpenpiClient
from gpu_consumers.policies.contract import AS_THE_CARD_SAYS, LoadOptions, Observation, PolicyError
from runtime.errors import Fatal, Retry
from schemas.cards import ModelCard
from schemas.openpi_wire import pack, unpack


@dataclass(frozen=True, slots=True)
class Layout:
    """The server's keys: of each image, and of the parts of the state, from one index up to before another."""

    images: tuple[str, ...]
    state: dict[str, tuple[int, int]]
    #: Images as (3, height, width) rather than (height, width, 3).
    channels_first: bool = False
    #: Whether fewer cameras than `images` will do.
    partial: bool = False


#: As openpi's own clients of these robots send them (src/openpi/policies/{libero,droid,aloha}_policy.py at 15a9616).
#: A dot goes one map deeper; a slash is part of the key.
PRESETS = {
    "libero": Layout(("observation/image", "observation/wrist_image"), {"observation/state": (0, 8)}),
    "droid": Layout(
        ("observation/exterior_image_1_left", "observation/wrist_image_left"),
        {"observation/joint_position": (0, 7), "observation/gripper_position": (7, 8)},
    ),
    "aloha": Layout(
        ("images.cam_high", "images.cam_left_wrist", "images.cam_right_wrist", "images.cam_low"),
        {"state": (0, 14)},
        channels_first=True,
        partial=True,
    ),
}


class OpenpiRemoteConfig(BaseModel):
    """The card's `policy_config`: a preset, or `images` and `state`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    #: ws://host:port/path or wss://...
    url: str = Field(pattern=r"^wss?://[^/\s]+")
    preset: Literal["", "libero", "droid", "aloha"] = ""
    #: Our camera -> the server's key. With a preset: the card's cameras in the preset's order.
    images: dict[str, str] = Field(default_factory=dict)
    #: The server's key -> indices of our state, first and one beyond the last.
    state: dict[str, tuple[int, int]] = Field(default_factory=dict)
    channels_first: bool = False
    prompt: str = "prompt"
    #: Key for the request's seed, of a server that takes one. Empty: it is not sent.
    seed: str = ""
    #: Pixels a side that pictures are scaled to and padded with black, as openpi's clients do; 0: sent as they are.
    image_side: int = Field(default=224, ge=0, le=2048)
    #: Of one request; POLICY_TIMEOUT_S must be longer.
    timeout_s: float = Field(default=10.0, gt=0)
    connect_timeout_s: float = Field(default=5.0, gt=0)
    #: Keys of the server's metadata that change from one connection to the next, and say nothing about its model.
    volatile_metadata: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _says_where_things_go(self) -> OpenpiRemoteConfig:
        if bool(self.preset) == bool(self.images or self.state):
            raise ValueError(f"name a preset ({', '.join(PRESETS)}), or the server's keys in `images` and `state`")
        return self

    def layout(self, cameras: Sequence[str], state_dim: int) -> Layout:
        """Where a card's cameras and state go. Raises ValueError where they do not fit."""
        if self.preset:
            preset = PRESETS[self.preset]
            most = len(preset.images)
            if len(cameras) > most or (len(cameras) < most and not preset.partial):
                raise ValueError(f"preset {self.preset} has {most} cameras, the card {len(cameras)}")
            found = Layout(preset.images[: len(cameras)], preset.state, preset.channels_first)
        else:
            missing = [camera for camera in cameras if camera not in self.images]
            if missing:
                raise ValueError(f"`images` does not say where camera {missing[0]} goes")
            found = Layout(tuple(self.images[camera] for camera in cameras), self.state, self.channels_first)
        ends = max((stop for _, stop in found.state.values()), default=0)
        if ends > state_dim or any(not 0 <= start < stop for start, stop in found.state.values()):
            raise ValueError(f"`state` takes up to {ends} values, the card's state has {state_dim}")
        return found


class OpenpiRemotePolicy:
    """Prepared: a packed observation. Raw: the server's answers."""

    device = "remote"

    def __init__(self, card: ModelCard, device: str = "cpu", options: LoadOptions = AS_THE_CARD_SAYS) -> None:
        """The options' key is sent as `Authorization: Api-Key ...`. Raises Fatal while the server is away."""
        self.card = card
        self._config = OpenpiRemoteConfig.model_validate(card.policy_config)
        self._layout = self._config.layout(card.cameras, card.state_dim)
        self._digest = ""
        self._client = OpenpiClient(
            Endpoint(
                url=self._config.url,
                api_key=options.api_key.get_secret_value(),
                connect_timeout_s=self._config.connect_timeout_s,
                timeout_s=self._config.timeout_s,
            ),
            connections=card.batch_sizes[-1],
            is_same=lambda metadata: self._digest in ("", self._digest_of(metadata)),
        )
        try:
            self._digest = self._digest_of(self._client.metadata())
        except Retry as error:
            raise Fatal(f"deployment {card.deployment}: {error}: start the server, or correct `url`") from error
        self.revision = self._digest

    def probe(self) -> None:
        """Raises Retry while the server is away."""
        self._client.probe()

    def close(self) -> None:
        self._client.close()

    def prepare(self, observation: Observation) -> bytes:
        message: dict[str, Any] = {}
        for camera, key in zip(self.card.cameras, self._layout.images, strict=True):
            if camera not in observation.images:
                raise PolicyError(f"no image of camera {camera}")
            _put(message, key, self._picture(camera, observation.images[camera]))
        if observation.state.shape != (self.card.state_dim,):
            raise PolicyError(f"state has {observation.state.size} values, not {self.card.state_dim}")
        for key, (start, stop) in self._layout.state.items():
            _put(message, key, observation.state[start:stop])
        message[self._config.prompt] = observation.instruction
        if self._config.seed:
            message[self._config.seed] = observation.seed
        return pack(message)

    def infer(self, batch: Sequence[bytes]) -> list[Any]:
        """Raises Retry while the server is away, ServerError where it failed, Fatal where it is another one by now."""
        return self._client.infer(batch)

    def finish(self, raw: list[Any], size: int) -> list[NDArray[np.float32]]:
        return [self._chunk(answer) for answer in raw[:size]]

    def _chunk(self, answer: Any) -> NDArray[np.float32]:
        """The first `horizon` steps. Raises ValueError for an answer that does not fit the card."""
        actions = answer.get("actions") if isinstance(answer, dict) else None
        if not isinstance(actions, np.ndarray) or actions.ndim != 2:
            raise ValueError("the server's answer holds no `actions` of shape (horizon, dim)")
        horizon, dim = self.card.horizon, self.card.action_dim
        if actions.shape[0] < horizon or actions.shape[1] != dim:
            raise ValueError(f"the server's actions are {actions.shape}, the card says ({horizon}, {dim})")
        return np.ascontiguousarray(actions[:horizon], dtype=np.float32)

    def _picture(self, camera: str, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise PolicyError(f"camera {camera}: send uint8 (height, width, 3) RGB")
        side = self._config.image_side
        sized = pixels if side == 0 or pixels.shape[:2] == (side, side) else _padded(pixels, side)
        return np.ascontiguousarray(sized.transpose(2, 0, 1)) if self._layout.channels_first else sized

    def _digest_of(self, metadata: bytes) -> str:
        known = unpack(metadata)
        if not isinstance(known, dict):
            raise Fatal(f"{self._config.url} does not begin with a map: it does not speak openpi's protocol")
        stable = {key: value for key, value in known.items() if key not in self._config.volatile_metadata}
        return hashlib.sha256(self._config.url.encode() + b"\0" + pack(stable)).hexdigest()[:16]


def _put(message: dict[str, Any], key: str, value: object) -> None:
    *folders, name = key.split(".")
    for folder in folders:
        message = message.setdefault(folder, {})
    message[name] = value


def _padded(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Scaled to fit a square of `side` and centred on black (resize_with_pad of openpi_client/image_tools.py)."""
    height, width = pixels.shape[:2]
    ratio = max(width / side, height / side)
    size = (max(int(width / ratio), 1), max(int(height / ratio), 1))
    canvas = Image.new("RGB", (side, side))
    scaled = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    canvas.paste(scaled, (max((side - size[0]) // 2, 0), max((side - size[1]) // 2, 0)))
    return np.asarray(canvas)
