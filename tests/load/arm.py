"""The arm of one robot of the load: its world, its episodes, and what it asks."""

from __future__ import annotations

import base64
import itertools
import time
import uuid
from collections.abc import Iterable
from typing import Any

import numpy as np

from examples.tabletop.world import TabletopWorld
from schemas.messages import Image, ImageEncoding, InferenceRequest

CONTROL_RATE_HZ = 10.0
CAMERA = "base"
_ROBOT_TYPE, _MODEL = "tabletop_arm", "tabletop-pi0"
_TTL_MS = 5000
_LONGEST_EPISODE_STEPS = 40

_numbers = itertools.count()


class Arm:
    """A tabletop world of its own. An episode ends when the task is done, failed or took too long."""

    def __init__(self) -> None:
        self.robot_id = f"load-{next(_numbers)}"
        # Another world in each run: the same frame of the same robot would be a duplicate.
        self._world = TabletopWorld(uuid.uuid4().int % 2**32)
        self._begin()

    def body(self) -> dict[str, Any]:
        """What it sees now, as the body of POST /v1/inference."""
        jpeg, state = self._world.observe()
        return {
            "request_id": str(uuid.uuid4()),
            "robot_id": self.robot_id,
            "robot_type": _ROBOT_TYPE,
            "model": _MODEL,
            "instruction": self._world.instruction,
            "images": [{"camera": CAMERA, "data": base64.b64encode(jpeg).decode()}],
            "state": np.asarray(state, float).tolist(),
            "episode_id": self._episode,
            "step": self._step,
            "options": {"ttl_ms": _TTL_MS},
        }

    def request(self) -> InferenceRequest:
        """The same as a message."""
        jpeg, state = self._world.observe()
        return InferenceRequest(
            request_id=str(uuid.uuid4()),
            robot_id=self.robot_id,
            robot_type=_ROBOT_TYPE,
            model=_MODEL,
            instruction=self._world.instruction,
            images=[Image(camera=CAMERA, encoding=ImageEncoding.IMAGE_ENCODING_JPEG, data=jpeg)],
            state=np.asarray(state, float).tolist(),
            episode_id=self._episode,
            step=self._step,
            captured_at_ms=int(time.time() * 1000),
            ttl_ms=_TTL_MS,
        )

    def act(self, action: Iterable[float]) -> None:
        """One control step."""
        self._world.step(np.asarray(action))
        self._step += 1

    def hold(self) -> None:
        """A control step without an action. It counts: the same frame of the same step again would be a duplicate."""
        self._step += 1

    @property
    def is_done(self) -> bool:
        return bool(self._world.success or self._world.failed or self._step >= _LONGEST_EPISODE_STEPS)

    def begin_if_done(self) -> bool:
        """Whether a new episode has begun."""
        if self.is_done:
            self._begin()
            return True
        return False

    def _begin(self) -> None:
        self._episode, self._step = uuid.uuid4().hex, 0
        self._world.reset()
