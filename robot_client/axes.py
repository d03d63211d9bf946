"""What each dimension of an action is, as far as a control loop must know: what stops it, and what may be averaged."""

from __future__ import annotations

from dataclasses import dataclass

from robot_client.hold import HoldRule
from schemas.cards import ActionKind, EmbodimentCard


@dataclass(frozen=True, slots=True)
class Axes:
    """Both have one entry for each action dimension. Raises ValueError where they do not agree.

    moves: True where the value is a delta, which 0 stops and which may be divided among the ticks of a step.
    switches: True for a gripper or another switch, which is neither averaged nor divided.
    """

    moves: tuple[bool, ...]
    switches: tuple[bool, ...]

    def __post_init__(self) -> None:
        if len(self.moves) != len(self.switches) or not self.moves:
            raise ValueError(f"moves has {len(self.moves)} and switches {len(self.switches)} dimensions")
        if any(move and switch for move, switch in zip(self.moves, self.switches, strict=True)):
            raise ValueError("a dimension is either a delta or a switch")

    @classmethod
    def of(cls, card: EmbodimentCard) -> Axes:
        gripper = card.gripper.action_index if card.gripper is not None else None
        switches = tuple(dim.kind is ActionKind.BINARY or i == gripper for i, dim in enumerate(card.actions))
        return cls(HoldRule.of(card).moves, switches)

    @property
    def dim(self) -> int:
        return len(self.moves)

    @property
    def hold(self) -> HoldRule:
        return HoldRule(self.moves)
