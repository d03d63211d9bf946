"""Rotations between their notations, and tool poses that are moved by deltas. Pure, numpy only, float64.

Rotation matrices are (..., 3, 3). Every way to write a rotation (Rotation) goes over them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from schemas.action_space import Frame, Rotation

Array = NDArray[np.float64]


def to_matrix(values: Array, form: Rotation) -> Array:
    """(..., 3 or 4) -> (..., 3, 3). NaN stays NaN; a quaternion need not have unit length, but not length 0."""
    if form is Rotation.EULER_XYZ:
        return _from_euler_xyz(values)
    if form is Rotation.AXIS_ANGLE:
        return _from_quaternion(_quaternion_of_vector(values))
    if form is Rotation.QUATERNION_WXYZ:
        values = np.roll(values, -1, axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return _from_quaternion(values / np.linalg.norm(values, axis=-1, keepdims=True))


def from_matrix(matrix: Array, form: Rotation) -> Array:
    """(..., 3, 3) -> (..., 3 or 4). Angles within -pi to pi; of q and -q the quaternion with scalar >= 0."""
    if form is Rotation.EULER_XYZ:
        return _to_euler_xyz(matrix)
    quaternion = _to_quaternion(matrix)
    if form is Rotation.AXIS_ANGLE:
        return _vector_of_quaternion(quaternion)
    return np.roll(quaternion, 1, axis=-1) if form is Rotation.QUATERNION_WXYZ else quaternion


def rotate(values: Array, source: Rotation, target: Rotation) -> Array:
    """The same rotations in another notation; (..., 3 or 4) each."""
    return values if source is target else from_matrix(to_matrix(values, source), target)


def move(position: Array, matrix: Array, shift: Array, turn: Array, frame: Frame) -> tuple[Array, Array]:
    """A pose after a delta: position, shift (3,), matrix, turn (3, 3). Base: p + d, D R. Tool: p + R d, R D."""
    if frame is Frame.BASE:
        return position + shift, turn @ matrix
    return position + matrix @ shift, matrix @ turn


def delta_between(
    position: Array, matrix: Array, next_position: Array, next_matrix: Array, frame: Frame
) -> tuple[Array, Array]:
    """The delta that `move` needs to come from one pose to the next."""
    shift = next_position - position
    if frame is Frame.BASE:
        return shift, next_matrix @ matrix.T
    return matrix.T @ shift, matrix.T @ next_matrix


def _from_euler_xyz(angles: Array) -> Array:
    (sr, sp, sy), (cr, cp, cy) = np.moveaxis(np.sin(angles), -1, 0), np.moveaxis(np.cos(angles), -1, 0)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _to_euler_xyz(matrix: Array) -> Array:
    pitch = np.arctan2(-matrix[..., 2, 0], np.hypot(matrix[..., 0, 0], matrix[..., 1, 0]))
    # Looking straight up or down, roll and yaw turn about one axis: all of it is given to the roll.
    locked = np.hypot(matrix[..., 0, 0], matrix[..., 1, 0]) < 1e-9
    roll = np.where(
        locked,
        np.arctan2(-matrix[..., 1, 2], matrix[..., 1, 1]),
        np.arctan2(matrix[..., 2, 1], matrix[..., 2, 2]),
    )
    yaw = np.where(locked, 0.0, np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0]))
    # atan2 of the comparison above is blind to NaN.
    unknown = np.asarray(np.isnan(matrix).any(axis=(-2, -1), keepdims=True))[..., 0]
    return np.where(unknown, np.nan, np.stack((roll, pitch, yaw), axis=-1))


def _quaternion_of_vector(vector: Array) -> Array:
    half = np.linalg.norm(vector, axis=-1, keepdims=True) / 2
    # sin(half) / angle, by numpy's sinc so that an angle of 0 needs no case of its own.
    return np.concatenate((vector * np.sinc(half / np.pi) / 2, np.cos(half)), axis=-1)


def _vector_of_quaternion(quaternion: Array) -> Array:
    sine = np.linalg.norm(quaternion[..., :3], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(sine, quaternion[..., 3:])
    # Near 0 the ratio of angle to sine tends to 2.
    ratio = np.where(sine > 1e-12, angle / np.where(sine > 1e-12, sine, 1.0), 2.0)
    return quaternion[..., :3] * ratio


def _from_quaternion(quaternion: Array) -> Array:
    x, y, z, w = np.moveaxis(quaternion, -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def _to_quaternion(matrix: Array) -> Array:
    """Shepperd's method: divide by the largest of the four, so that no rotation loses digits."""
    xx, yy, zz = matrix[..., 0, 0], matrix[..., 1, 1], matrix[..., 2, 2]
    xy, yx, xz = matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 0, 2]
    zx, yz, zy = matrix[..., 2, 0], matrix[..., 1, 2], matrix[..., 2, 1]
    candidates = np.stack(
        (
            np.stack((1 + xx - yy - zz, xy + yx, xz + zx, zy - yz), axis=-1),
            np.stack((xy + yx, 1 - xx + yy - zz, yz + zy, xz - zx), axis=-1),
            np.stack((xz + zx, yz + zy, 1 - xx - yy + zz, yx - xy), axis=-1),
            np.stack((zy - yz, xz - zx, yx - xy, 1 + xx + yy + zz), axis=-1),
        ),
        axis=-2,
    )
    diagonal = np.stack([candidates[..., i, i] for i in range(4)], axis=-1)
    best = np.take_along_axis(candidates, diagonal.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    unit: Array = best / np.linalg.norm(best, axis=-1, keepdims=True)
    return np.where(unit[..., 3:] < 0, -unit, unit)
