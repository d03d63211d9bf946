"""One successful episode as an animated GIF and as a PNG strip, with its instruction under it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

#: Height of the caption, pixels.
CAPTION_PX = 26
GIF_FRAME_MS = 120
#: How long the last frame of the GIF stands, milliseconds.
GIF_LAST_MS = 1200
STRIP_FRAMES = 6
STRIP_GAP_PX = 4
#: An episode longer than this is not filmed on: memory stays bounded.
MAX_FRAMES = 200

Pixels = NDArray[np.uint8]


class Film:
    """Keeps the first successful episode of one robot, and films no other after it: drawing a frame costs time."""

    def __init__(self, robot_id: str) -> None:
        self._robot_id = robot_id
        self._done = False
        self.instruction = ""
        self.frames: list[Pixels] = []

    def begin(self, robot_id: str, instruction: str) -> None:
        if self._films(robot_id):
            self.instruction, self.frames = instruction, []

    def frame(self, robot_id: str, pixels: Callable[[], Pixels]) -> None:
        if self._films(robot_id) and len(self.frames) < MAX_FRAMES:
            self.frames.append(np.array(pixels(), dtype=np.uint8))

    def end(self, robot_id: str, *, success: bool) -> None:
        if self._films(robot_id) and success and self.frames:
            self._done = True

    def _films(self, robot_id: str) -> bool:
        return robot_id == self._robot_id and not self._done

    def write(self, folder: Path) -> tuple[Path, Path] | None:
        """Writes episode.gif and episode.png; returns their paths, None if no episode was filmed to its end."""
        if not self._done:
            return None
        folder.mkdir(parents=True, exist_ok=True)
        gif, strip = folder / "episode.gif", folder / "episode.png"
        write_gif(gif, self.frames, self.instruction)
        write_strip(strip, self.frames, self.instruction)
        return gif, strip


def write_gif(path: Path, frames: list[Pixels], caption: str) -> None:
    """frames: (height, width, 3) uint8 each, all of one size, at least one."""
    pictures = [_captioned(Image.fromarray(frame), caption) for frame in frames]
    durations = [GIF_FRAME_MS] * (len(pictures) - 1) + [GIF_LAST_MS]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=True)


def write_strip(path: Path, frames: list[Pixels], caption: str) -> None:
    """STRIP_FRAMES frames side by side, evenly chosen, first and last among them."""
    chosen = [frames[i] for i in strip_indices(len(frames))]
    height, width = chosen[0].shape[:2]
    row = Image.new("RGB", (len(chosen) * (width + STRIP_GAP_PX) - STRIP_GAP_PX, height), "white")
    for i, frame in enumerate(chosen):
        row.paste(Image.fromarray(frame), (i * (width + STRIP_GAP_PX), 0))
    _captioned(row, caption).save(path)


def strip_indices(count: int) -> list[int]:
    """Ascending and without repeats; at most STRIP_FRAMES of 0..count-1."""
    return sorted({round(position) for position in np.linspace(0, count - 1, min(count, STRIP_FRAMES)).tolist()})


def _captioned(picture: Image.Image, caption: str) -> Image.Image:
    canvas = Image.new("RGB", (picture.width, picture.height + CAPTION_PX), "white")
    canvas.paste(picture, (0, 0))
    font = ImageFont.load_default(size=14)
    ImageDraw.Draw(canvas).text((6, picture.height + 5), caption, fill="black", font=font)
    return canvas
