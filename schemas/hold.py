"""The hold rule: what a robot does while it has no fresh actions.

A robot holds from the first control step that no fresh chunk has an action for. A refusal that speaks of the scene, the
robot or an operator's stop ends what was planned at once; where the service is late, has no room or cannot be reached,
what is left of a chunk that is still in its time may be finished first (robot_client/schedule.py). It holds:

- a delta dimension and a speed get 0: no motion is commanded;
- an absolute dimension repeats the last executed value: the target stays where it is;
- a gripper or another switch repeats the last executed value too, whatever its kind, so that what is held
  stays held.

Before the first executed action nothing is known to repeat: a robot whose dimensions are all delta holds with
zeros, any other sends no command. Holding is a control step like any other: the step number goes on, so the
next observation is a new one, and its request gets a fresh request id.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schemas.cards import ActionKind, EmbodimentCard


@dataclass(frozen=True, slots=True)
class HoldRule:
    """`moves[i]` is True where dimension i is a delta or a speed that 0 stops, False where its last value is kept."""

    moves: tuple[bool, ...]

    @classmethod
    def of(cls, card: EmbodimentCard) -> HoldRule:
        grippers = card.gripper.indices if card.gripper is not None else ()
        moving = (ActionKind.DELTA, ActionKind.VELOCITY)
        return cls(tuple(dim.kind in moving and i not in grippers for i, dim in enumerate(card.actions)))

    def action(self, last: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
        """The action (action_dim,) float32 that holds; None: send no command.

        last: (action_dim,), the action executed last, None before the first. Raises ValueError for another shape.
        """
        if last is None:
            return np.zeros(len(self.moves), dtype=np.float32) if all(self.moves) else None
        if last.shape != (len(self.moves),):
            raise ValueError(f"the last action must have shape ({len(self.moves)},), not {last.shape}")
        return np.where(np.array(self.moves), np.float32(0), last).astype(np.float32)
