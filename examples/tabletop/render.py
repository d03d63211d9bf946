"""Draws worlds from above: smooth shapes by signed distance, so that a small picture equals a large one scaled down."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.tabletop.world import CEILING_Z_M, FLOOR_Z_M, HALF_BLOCK_M, Worlds

Picture = NDArray[np.float32]

_PALETTE = np.array([[205, 52, 48], [62, 158, 76], [50, 96, 200], [228, 188, 44]], np.float32) / 255
_WOOD = np.array([0.80, 0.68, 0.53], np.float32)
_STEEL = np.array([0.20, 0.21, 0.24], np.float32)
_STEEL_HIGH = np.array([0.78, 0.80, 0.84], np.float32)
JPEG_QUALITY = 90


@dataclass(frozen=True)
class Scene:
    """What the camera sees of N worlds: positions in metres, heights 0..1, all (N, ...)."""

    blocks: Picture
    block_height: Picture
    colours: NDArray[np.int64]
    gripper: Picture
    height: Picture
    opening: Picture


def scene_of(worlds: Worlds) -> Scene:
    height = (worlds.gripper[:, 2] - FLOOR_Z_M) / (CEILING_Z_M - FLOOR_Z_M)
    lifted = np.zeros(worlds.blocks.shape[:2])
    carrying = np.flatnonzero(worlds.held >= 0)
    lifted[carrying, worlds.held[carrying]] = height[carrying]
    return Scene(
        blocks=worlds.blocks.astype(np.float32),
        block_height=lifted.astype(np.float32),
        colours=worlds.colours,
        gripper=worlds.gripper[:, :2].astype(np.float32),
        height=height.astype(np.float32),
        opening=np.where(worlds.closed, 0.0, 1.0).astype(np.float32),
    )


def render(scene: Scene, side_px: int) -> NDArray[np.uint8]:
    """uint8 (N, side, side, 3), RGB."""
    count = len(scene.gripper)
    grid = _Grid(side_px)
    picture = np.broadcast_to(_table(side_px), (count, side_px, side_px, 3)).copy()
    for index in range(scene.blocks.shape[1]):
        _draw_block(picture, grid, scene, index)
    _draw_gripper(picture, grid, scene)
    return (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)


def encode_jpeg(picture: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


@dataclass(frozen=True)
class _Shape:
    """A part of the picture and how much of each of its pixels is covered: 0..1, (N, rows, columns)."""

    rows: slice
    columns: slice
    coverage: Picture


class _Grid:
    """Centres of the pixels in metres; y grows upwards."""

    def __init__(self, side_px: int) -> None:
        centres = (np.arange(side_px, dtype=np.float32) + 0.5) / side_px
        self.x = centres[None, None, :]
        self.y = centres[::-1][None, :, None]
        self.pixel_m = 1.0 / side_px

    def box(self, centre: Picture, half_x: Picture | float, half_y: Picture | float, soft_m: float = 0.0) -> _Shape:
        """Axis-aligned boxes, one in each world; `soft_m` widens the edge."""
        edge = max(self.pixel_m, soft_m)
        columns = self._window(centre[:, 0], half_x, edge)
        rows = self._window(1 - centre[:, 1], half_y, edge)
        away_x = np.abs(self.x[..., columns] - centre[:, 0, None, None])
        away_y = np.abs(self.y[:, rows] - centre[:, 1, None, None])
        x = np.clip((np.reshape(half_x, (-1, 1, 1)) - away_x) / edge + 0.5, 0, 1)
        y = np.clip((np.reshape(half_y, (-1, 1, 1)) - away_y) / edge + 0.5, 0, 1)
        return _Shape(rows, columns, np.asarray(x * y, np.float32))

    def _window(self, centre: Picture, half: Picture | float, edge: float) -> slice:
        """The pixels that the shape can touch in any world."""
        reach = np.asarray(half) + edge
        first, last = np.min(centre - reach) / self.pixel_m, np.max(centre + reach) / self.pixel_m
        return slice(max(int(first), 0), max(int(last) + 1, 0))


@lru_cache(maxsize=4)
def _table(side_px: int) -> Picture:
    """Planks with grain, drawn large and scaled down so that every size shows the same table."""
    large = 448
    y, x = np.mgrid[0:large, 0:large].astype(np.float32) / large
    grain = 0.02 * np.sin(60 * y + 3 * np.sin(5 * x)) + 0.012 * np.sin(190 * y + 2 * np.sin(11 * x))
    plank = 0.02 * (np.floor(y * 6) % 2)
    seam = 0.08 * (np.abs((y * 6) % 1 - 0.5) > 0.485)
    table = _WOOD[None, None] * (1 + (grain - plank - seam)[..., None])
    light = 1.05 - 0.16 * np.hypot(x - 0.35, y - 0.3)
    table = table * light[..., None]
    step = large // side_px
    return np.asarray(table.reshape(side_px, step, side_px, step, 3).mean(axis=(1, 3)), np.float32)


def _blend(picture: Picture, shape: _Shape, colour: NDArray[np.floating], opacity: float = 1.0) -> None:
    """Lay a colour, (3,) or (N, 3), over the picture."""
    part = picture[:, shape.rows, shape.columns]
    flat = np.reshape(colour, (-1, 1, 1, 3))
    part += opacity * shape.coverage[..., None] * (flat - part)


def _shade(picture: Picture, shape: _Shape, darkness: float) -> None:
    picture[:, shape.rows, shape.columns] *= 1 - darkness * shape.coverage[..., None]


def _draw_block(picture: Picture, grid: _Grid, scene: Scene, index: int) -> None:
    centre, height = scene.blocks[:, index], scene.block_height[:, index]
    colour = _PALETTE[scene.colours[:, index]]
    half = HALF_BLOCK_M * (1 + 0.25 * height)
    offset = np.stack([0.018 + 0.06 * height, -0.022 - 0.06 * height], axis=1)
    _shade(picture, grid.box(centre + offset, half, half, soft_m=0.04), darkness=0.38)
    _blend(picture, grid.box(centre, half, half), colour * 0.72)
    lit = np.array([[-0.008, 0.010]], np.float32)
    _blend(picture, grid.box(centre + lit, half * 0.86, half * 0.84), colour)
    glint = grid.box(centre + 3.2 * lit, half * 0.42, half * 0.36, soft_m=0.05)
    _blend(picture, glint, np.ones(3, np.float32), opacity=0.25)


def _draw_gripper(picture: Picture, grid: _Grid, scene: Scene) -> None:
    """Two fingers whose gap shows the opening; shade and shadow show the height."""
    height = scene.height
    scale = 1 + 0.35 * height
    gap = (0.022 + 0.045 * scene.opening) * scale
    shade = _STEEL + height[:, None] * (_STEEL_HIGH - _STEEL)
    offset = np.stack([0.012 + 0.09 * height, -0.014 - 0.10 * height], axis=1)
    for side in (-1.0, 1.0):
        centre = scene.gripper + np.stack([side * gap, np.zeros_like(gap)], axis=1)
        _shade(picture, grid.box(centre + offset, 0.017 * scale, 0.047 * scale, soft_m=0.03), darkness=0.42)
    for side in (-1.0, 1.0):
        centre = scene.gripper + np.stack([side * gap, np.zeros_like(gap)], axis=1)
        _blend(picture, grid.box(centre, 0.019 * scale, 0.050 * scale), shade * 0.55)
        _blend(picture, grid.box(centre, 0.013 * scale, 0.043 * scale), shade)
    _blend(picture, grid.box(scene.gripper, gap, 0.011 * scale), shade * 0.8)
