"""Takes what names a person out of images: metadata at level partial, faces besides at level full."""

from __future__ import annotations

import io
import struct
import warnings
from functools import cache
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from runtime.consent import Level

MAX_SIDE_PX = 2048
#: Of what had to be encoded again.
JPEG_QUALITY = 95
#: Haar cascades that come with OpenCV (Viola and Jones 2001): profiles look one way, so they see the mirror image too.
_CASCADES = (
    ("haarcascade_frontalface_default.xml", False),
    ("haarcascade_frontalface_alt2.xml", False),
    ("haarcascade_profileface.xml", True),
)
_SCALE_STEP, _NEIGHBOURS, _SMALLEST_FACE_PX = 1.08, 4, 20
#: A face is covered with a margin, and reduced to so many blocks a side: nothing of it can be computed back.
_MARGIN, _BLOCKS = 0.25, 6
_EXIF_ORIENTATION = 0x0112
_PILLOW = {"jpeg": "JPEG", "png": "PNG"}
#: PNG chunks that hold pixels or say how to show them; all others are metadata.
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"sRGB", b"cHRM", b"sBIT"})
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def image(data: bytes, encoding: str, level: Level, *, width: int = 0, height: int = 0) -> bytes | None:
    """The image in the same encoding ("jpeg", "png" or "rgb8"), without what the level takes out.

    width, height: pixels; of rgb8 only. None: it could not be made safe (unreadable, too large, another encoding)
    and must not be kept.
    """
    if level == "none":
        return data
    if encoding == "rgb8":
        return _raw(data, level, width, height)
    if encoding not in _PILLOW:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=[_PILLOW[encoding]]) as picture:
                if max(picture.size) > MAX_SIDE_PX:
                    return None
                turned = picture.getexif().get(_EXIF_ORIENTATION, 1) != 1
                upright = ImageOps.exif_transpose(picture).convert("RGB")
        return _compressed(data, encoding, level, np.asarray(upright), turned)
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError):
        return None


def faces(pixels: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
    """x, y, width, height in pixels of every face found. pixels: (height, width, 3), RGB."""
    grey = cv2.equalizeHist(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))
    found: list[tuple[int, int, int, int]] = []
    for detector, mirrored in _detectors():
        found += _detect(detector, grey)
        if mirrored:
            flipped = _detect(detector, cv2.flip(grey, 1))
            found += [(grey.shape[1] - x - w, y, w, h) for x, y, w, h in flipped]
    return found


def blurred(pixels: NDArray[np.uint8], boxes: list[tuple[int, int, int, int]]) -> NDArray[np.uint8]:
    """A copy with the boxes and a margin around them covered."""
    result = pixels.copy()
    for x, y, w, h in boxes:
        dx, dy = round(w * _MARGIN), round(h * _MARGIN)
        part = result[max(y - dy, 0) : y + h + dy, max(x - dx, 0) : x + w + dx]
        small = cv2.resize(part, (_BLOCKS, _BLOCKS), interpolation=cv2.INTER_AREA)
        part[:] = cv2.resize(small, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_LINEAR)
    return result


def _compressed(data: bytes, encoding: str, level: Level, pixels: NDArray[np.uint8], turned: bool) -> bytes:
    boxes = faces(pixels) if level == "full" else []
    if boxes:
        pixels = blurred(pixels, boxes)
    if boxes or turned:
        return _encoded(pixels, encoding)
    # Nothing of the picture changes, so nothing is lost by encoding it again.
    return _jpeg_without_metadata(data) if encoding == "jpeg" else _png_without_metadata(data)


def _raw(data: bytes, level: Level, width: int, height: int) -> bytes | None:
    if not (0 < width <= MAX_SIDE_PX and 0 < height <= MAX_SIDE_PX and len(data) == width * height * 3):
        return None
    pixels = np.frombuffer(data, np.uint8).reshape(height, width, 3)
    boxes = faces(pixels) if level == "full" else []
    return blurred(pixels, boxes).tobytes() if boxes else data


def _encoded(pixels: NDArray[np.uint8], encoding: str) -> bytes:
    buffer = io.BytesIO()
    options: dict[str, Any] = {"quality": JPEG_QUALITY} if encoding == "jpeg" else {}
    Image.fromarray(pixels).save(buffer, _PILLOW[encoding], **options)
    return buffer.getvalue()


def _jpeg_without_metadata(data: bytes) -> bytes:
    """Without application segments but JFIF and Adobe's colour transform, comments, and what follows the end."""
    kept = [data[:2]]
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("not a JPEG segment")
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker == 0xDA:
            end = data.rindex(b"\xff\xd9") + 2
            return b"".join([*kept, data[at:end]])
        (length,) = struct.unpack_from(">H", data, at + 2)
        application = 0xE0 <= marker <= 0xEF and marker not in (0xE0, 0xEE)
        if not application and marker != 0xFE:
            kept.append(data[at : at + 2 + length])
        at += 2 + length


def _png_without_metadata(data: bytes) -> bytes:
    kept = [_PNG_SIGNATURE]
    at = len(_PNG_SIGNATURE)
    while True:
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if kind in _PNG_KEPT:
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end


def _detect(detector: cv2.CascadeClassifier, grey: NDArray[Any]) -> list[tuple[int, int, int, int]]:
    size = (_SMALLEST_FACE_PX, _SMALLEST_FACE_PX)
    boxes = detector.detectMultiScale(grey, scaleFactor=_SCALE_STEP, minNeighbors=_NEIGHBOURS, minSize=size)
    return [cast(tuple[int, int, int, int], tuple(int(side) for side in box)) for box in boxes]


@cache
def _detectors() -> list[tuple[cv2.CascadeClassifier, bool]]:
    folder = Path(cv2.__file__).parent / "data"
    loaded = [(cv2.CascadeClassifier(str(folder / name)), mirrored) for name, mirrored in _CASCADES]
    if any(detector.empty() for detector, _ in loaded):
        raise RuntimeError(f"the face cascades are missing in {folder}: install opencv-python-headless below 5")
    return loaded
