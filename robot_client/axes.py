"""What each dimension of an action is, as far as a control loop must know: what stops it, and what may be averaged."""

from __future__ import annotations

from dataclasses import dataclass

from robot_client.hold import HoldRule
from schemas.cards import ActionKind, EmbodimentCard


@dataclass(frozen=True, slots=True)
class Axes:
    """Each has one entry for each action dimension. Raises ValueError where they do not agree.

    moves: True where the value is a delta, which 0 stops and which may be divided among the ticks of a step.
    switches: True for a gripper or another switch, which is neither averaged nor divided.
    speeds: True where the value is a speed, which 0 stops too, and which each tick of a step gets whole. Empty: none.
    """

    moves: tuple[bool, ...]
    switches: tuple[bool, ...]
    speeds: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        if len(self.moves) != len(self.switches) or not self.moves:
            raise ValueError(f"moves has {len(self.moves)} and switches {len(self.switches)} dimensions")
        if self.speeds and len(self.speeds) != len(self.moves):
            raise ValueError(f"speeds has {len(self.speeds)} dimensions, not {len(self.moves)}")
        if any(move and switch for move, switch in zip(self.moves, self.switches, strict=True)):
            raise ValueError("a dimension is either a delta or a switch")

    @classmethod
    def of(cls, card: EmbodimentCard) -> Axes:
        grippers = card.gripper.indices if card.gripper is not None else ()
        switches = tuple(dim.kind is ActionKind.BINARY or i in grippers for i, dim in enumerate(card.actions))
        speeds = tuple(dim.kind is ActionKind.VELOCITY and not switches[i] for i, dim in enumerate(card.actions))
        stopped = HoldRule.of(card).moves
        return cls(tuple(stops and not speed for stops, speed in zip(stopped, speeds, strict=True)), switches, speeds)

    @property
    def dim(self) -> int:
        return len(self.moves)

    @property
    def hold(self) -> HoldRule:
        speeds = self.speeds or (False,) * self.dim
        return HoldRule(tuple(move or speed for move, speed in zip(self.moves, speeds, strict=True)))
