"""A tabletop with three blocks and a gripper: many worlds at once, pure numpy.

The table is 1 m x 1 m, seen from above; x to the right, y away from the viewer, z up, all in metres. An action is
(dx, dy, dz, drx, dry, drz, gripper): metres and radians a step, at most 0.08 m; rotations are ignored; gripper 0
opens, 1 closes. Proprioceptive state: (x, y, z, rx, ry, rz, left finger, right finger): metres and radians.

    world = TabletopWorld(seed=7)
    instruction = world.reset()
    while not (world.success or world.failed):
        jpeg, state = world.observe()
        world.step(action)          # (7,)
        picture = world.frame()     # uint8 (224, 224, 3)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from examples.tabletop.render import Scene

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TASKS = ("reach", "pick", "push left", "push right")
COLOURS = ("red", "green", "blue", "yellow")
_TEXTS = {
    "reach": "reach the {} block",
    "pick": "pick up the {} block",
    "push left": "push the {} block to the left",
    "push right": "push the {} block to the right",
}

BLOCKS = 3
HALF_BLOCK_M = 0.07
HALF_FINGERS_M = 0.05
MAX_STEP_M = 0.08
CONTROL_RATE_HZ = 10.0
LOW_Z_M = 0.09
FLOOR_Z_M = 0.04
CEILING_Z_M = 0.36
HOVER_Z_M = 0.2
LIFTED_Z_M = 0.2
FINGER_OPEN_M = 0.04
#: The gripper stays within this margin of the table's edge.
EDGE_M = 0.03
PUSHED_LEFT_X_M, PUSHED_RIGHT_X_M = 0.15, 0.85
STILL_STEPS = 3
MAX_STEPS = 80


def instruction_of(task: int, colour: int) -> str:
    return _TEXTS[TASKS[task]].format(COLOURS[colour])


@dataclass
class Worlds:
    """N worlds side by side. Arrays: gripper (N, 3), blocks (N, 3, 2), colours (N, 3), the rest (N,)."""

    gripper: Floats
    closed: Bools
    blocks: Floats
    colours: Ints
    held: Ints  # index of the block, -1 for none
    task: Ints
    target: Ints  # index of the named block
    still: Ints
    start: Floats  # blocks at reset

    @property
    def count(self) -> int:
        return len(self.gripper)

    def copy(self) -> Worlds:
        return Worlds(**{name: value.copy() for name, value in vars(self).items()})

    def put(self, where: Bools, other: Worlds) -> None:
        """Replace the worlds in `where` by those of `other`."""
        for name, value in vars(self).items():
            value[where] = getattr(other, name)[where]

    @property
    def target_xy(self) -> Floats:
        return self.blocks[np.arange(self.count), self.target]

    @property
    def success(self) -> Bools:
        x = self.target_xy[:, 0]
        lifted = (self.held == self.target) & (self.gripper[:, 2] > LIFTED_Z_M)
        by_task = np.stack([self.still >= STILL_STEPS, lifted, x < PUSHED_LEFT_X_M, x > PUSHED_RIGHT_X_M])
        success: Bools = by_task[self.task, np.arange(self.count)]
        return success

    @property
    def failed(self) -> Bools:
        """A block that was not named was lifted, or moved by more than 0.1 m."""
        lifted = (self.held >= 0) & (self.held != self.target) & (self.gripper[:, 2] > LIFTED_Z_M - 0.05)
        moved = np.abs(self.blocks - self.start).max(axis=2) > 0.1
        moved[np.arange(self.count), self.target] = False
        failed: Bools = lifted | moved.any(axis=1)
        return failed

    def states(self) -> NDArray[np.float32]:
        """(N, 8) proprioceptive states."""
        fingers = np.where(self.closed, 0.0, FINGER_OPEN_M)
        zeros = np.zeros(self.count)
        columns = [*self.gripper.T, zeros, zeros, zeros, fingers, fingers]
        return np.stack(columns, axis=1).astype(np.float32)

    def step(self, actions: Floats) -> None:
        """Advance every world by one control step; actions (N, 7)."""
        before = self.gripper.copy()
        delta = np.clip(actions[:, :3], -MAX_STEP_M, MAX_STEP_M)
        low = np.array([EDGE_M, EDGE_M, FLOOR_Z_M])
        high = np.array([1 - EDGE_M, 1 - EDGE_M, CEILING_Z_M])
        self.gripper = np.clip(self.gripper + delta, low, high)
        close = actions[:, 6] > 0.5
        self._grip(close)
        self._push()
        self._carry()
        near = np.abs(self.gripper[:, :2] - self.target_xy).max(axis=1) < 0.04
        calm = np.abs(self.gripper - before).max(axis=1) < 0.02
        high_enough = self.gripper[:, 2] > 0.12
        self.still = np.where(near & calm & high_enough & ~self.closed, self.still + 1, 0)

    def _grip(self, close: Bools) -> None:
        closing = close & ~self.closed & (self.gripper[:, 2] < LOW_Z_M)
        distance = np.abs(self.blocks - self.gripper[:, None, :2]).max(axis=2)
        nearest = distance.argmin(axis=1)
        grasped = closing & (distance.min(axis=1) < 0.05)
        self.held = np.where(grasped, nearest, np.where(close, self.held, -1))
        self.closed = close

    def _push(self) -> None:
        """A closed, empty gripper low on the table moves what it overlaps, along the axis of least overlap."""
        pushing = self.closed & (self.held < 0) & (self.gripper[:, 2] < LOW_Z_M)
        gap = self.blocks - self.gripper[:, None, :2]
        overlap = HALF_BLOCK_M + HALF_FINGERS_M - np.abs(gap)
        touched = pushing[:, None] & (overlap > 0).all(axis=2)
        along_x = overlap[..., 0] <= overlap[..., 1]
        away = np.where(gap >= 0, 1.0, -1.0) * overlap
        shift = np.where(np.stack([along_x, ~along_x], axis=2), away, 0.0)
        self.blocks = np.clip(self.blocks + np.where(touched[..., None], shift, 0.0), 0.07, 0.93)

    def _carry(self) -> None:
        carrying = np.flatnonzero(self.held >= 0)
        self.blocks[carrying, self.held[carrying]] = self.gripper[carrying, :2]


def sample(rng: np.random.Generator, count: int, *, wide: bool = False, task: int | None = None) -> Worlds:
    """Fresh worlds. Each block has a row of its own, so that none stands in the way of a push.

    wide: the gripper starts anywhere, at any height, open or closed, as after a disturbance.
    """
    rows = rng.permuted(np.tile([0.2, 0.5, 0.8], (count, 1)), axis=1) + rng.uniform(-0.05, 0.05, (count, BLOCKS))
    columns = rng.uniform(0.27, 0.73, (count, BLOCKS))
    blocks = np.stack([columns, rows], axis=2)
    colours = rng.permuted(np.tile(np.arange(len(COLOURS)), (count, 1)), axis=1)[:, :BLOCKS]
    gripper = np.stack(
        [rng.uniform(0.2, 0.8, count), rng.uniform(0.2, 0.8, count), rng.uniform(0.2, 0.3, count)], axis=1
    )
    closed = np.zeros(count, bool)
    if wide:
        gripper = np.stack(
            [rng.uniform(0.05, 0.95, count), rng.uniform(0.05, 0.95, count), rng.uniform(0.05, 0.34, count)], axis=1
        )
        closed = rng.random(count) < 0.5
    tasks = rng.integers(0, len(TASKS), count) if task is None else np.full(count, task)
    return Worlds(
        gripper=gripper,
        closed=closed,
        blocks=blocks,
        colours=colours.astype(np.int64),
        held=np.full(count, -1),
        task=tasks.astype(np.int64),
        target=rng.integers(0, BLOCKS, count),
        still=np.zeros(count, np.int64),
        start=blocks.copy(),
    )


class TabletopWorld:
    """One world with pictures, for robots, demos and evaluation."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._worlds = sample(self._rng, 1)
        self.steps = 0

    def reset(self, task: str | None = None) -> str:
        """Start an episode; returns its instruction. `task` is one of TASKS, None for any."""
        self._worlds = sample(self._rng, 1, task=None if task is None else TASKS.index(task))
        self.steps = 0
        return self.instruction

    @property
    def worlds(self) -> Worlds:
        return self._worlds

    @property
    def task(self) -> str:
        return TASKS[int(self._worlds.task[0])]

    @property
    def instruction(self) -> str:
        colour = int(self._worlds.colours[0, self._worlds.target[0]])
        return instruction_of(int(self._worlds.task[0]), colour)

    @property
    def success(self) -> bool:
        return bool(self._worlds.success[0])

    @property
    def failed(self) -> bool:
        """The wrong block was moved, or the episode took too long."""
        return bool(self._worlds.failed[0]) or (self.steps >= MAX_STEPS and not self.success)

    def step(self, action: NDArray[np.floating]) -> None:
        """Execute one action, (7,)."""
        self._worlds.step(np.asarray(action, np.float64).reshape(1, 7))
        self.steps += 1

    def state(self) -> NDArray[np.float32]:
        return np.asarray(self._worlds.states()[0])

    def frame(self) -> NDArray[np.uint8]:
        """What the camera sees: uint8 (224, 224, 3), RGB."""
        from examples.tabletop.render import render

        return np.asarray(render(self.scene(), 224)[0])

    def observe(self) -> tuple[bytes, NDArray[np.float32]]:
        """JPEG of the frame and the proprioceptive state (8,)."""
        from examples.tabletop.render import encode_jpeg

        return encode_jpeg(self.frame()), self.state()

    def scene(self) -> Scene:
        from examples.tabletop.render import scene_of

        return scene_of(self._worlds)
