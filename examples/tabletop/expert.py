"""The scripted expert: a function of the world's state alone, for many worlds at once."""

from __future__ import annotations

import numpy as np

from examples.tabletop.world import (
    FLOOR_Z_M,
    HALF_BLOCK_M,
    HALF_FINGERS_M,
    HOVER_Z_M,
    LOW_Z_M,
    MAX_STEP_M,
    Floats,
    Worlds,
)

_GRASP_Z_M = FLOOR_Z_M + 0.01
_CARRY_Z_M = 0.28
#: Distance between gripper and block from which a push begins.
_BESIDE_M = HALF_BLOCK_M + HALF_FINGERS_M + 0.04
_ALIGNED_M = 0.02
#: A step longer than this is never taken: it leaves room below the limit for what the policy adds.
_STEP_M = MAX_STEP_M * 0.9


def act(worlds: Worlds) -> Floats:
    """The expert's next action in every world, (N, 7)."""
    goal, close = _reach(worlds)
    for task, plan in ((1, _pick), (2, _push), (3, _push)):
        chosen = worlds.task == task
        if chosen.any():
            other_goal, other_close = plan(worlds)
            goal[chosen], close[chosen] = other_goal[chosen], other_close[chosen]
    actions = np.zeros((worlds.count, 7))
    actions[:, :3] = np.clip(goal - worlds.gripper, -_STEP_M, _STEP_M)
    actions[:, 6] = close
    return actions


def demonstrate(worlds: Worlds, horizon: int) -> Floats:
    """The next `horizon` actions of the expert, (N, horizon, 7); the worlds stay as they are."""
    ahead = worlds.copy()
    chunk = np.zeros((worlds.count, horizon, 7))
    for step in range(horizon):
        chunk[:, step] = act(ahead)
        ahead.step(chunk[:, step])
    return chunk


def _above(xy: Floats, z: Floats | float) -> Floats:
    return np.concatenate([xy, np.broadcast_to(z, (len(xy),))[:, None]], axis=1)


def _reach(worlds: Worlds) -> tuple[Floats, Floats]:
    return _above(worlds.target_xy, HOVER_Z_M), np.zeros(worlds.count)


def _pick(worlds: Worlds) -> tuple[Floats, Floats]:
    target, gripper = worlds.target_xy, worlds.gripper
    away = np.abs(gripper[:, :2] - target).max(axis=1)
    over = away < _ALIGNED_M
    holding = worlds.held == worlds.target
    low = gripper[:, 2] < LOW_Z_M - 0.02
    # Hover until the block is below; then down; then close; then up.
    z = np.where(over & ~holding, _GRASP_Z_M, np.where(holding, _CARRY_Z_M, HOVER_Z_M))
    goal = _above(np.where(holding[:, None], gripper[:, :2], target), z)
    # A low gripper beside its goal would sweep blocks away: it rises first.
    stuck = low & ~over & ~holding
    goal[stuck, :2] = gripper[stuck, :2]
    return goal, (holding | (over & low & ~worlds.closed)).astype(float)


def _push(worlds: Worlds) -> tuple[Floats, Floats]:
    target, gripper = worlds.target_xy, worlds.gripper
    side = np.where(worlds.task == 2, 1.0, -1.0)  # to push left, stand to the right
    distance = (gripper[:, 0] - target[:, 0]) * side
    aligned = np.abs(gripper[:, 1] - target[:, 1]) < _ALIGNED_M * 1.5
    beside = aligned & (distance > HALF_BLOCK_M + HALF_FINGERS_M - 0.03) & (distance < _BESIDE_M + 0.03)
    low = gripper[:, 2] < LOW_Z_M - 0.02
    start = np.stack([target[:, 0] + side * _BESIDE_M, target[:, 1]], axis=1)
    pushing = beside & low & worlds.closed & (worlds.held < 0)
    descending = beside & ~pushing
    goal = _above(start, HOVER_Z_M)
    goal[descending] = _above(np.stack([gripper[:, 0], target[:, 1]], axis=1), _GRASP_Z_M)[descending]
    swept = np.stack([gripper[:, 0] - side * _STEP_M, target[:, 1]], axis=1)
    goal[pushing] = _above(swept, _GRASP_Z_M)[pushing]
    stuck = low & ~beside
    goal[stuck, :2] = gripper[stuck, :2]
    # Pushing is done with closed fingers, closed in the air so that nothing is grasped.
    close = np.where(worlds.held >= 0, 0.0, 1.0)
    return goal, close
