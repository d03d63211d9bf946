"""Whether an image is worth a policy's time: header, end marker and one decode at reduced scale."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from schemas.messages import Image, ImageEncoding

MIN_SIDE_PX = 64
MAX_SIDE_PX = 2048
#: Standard deviation of grey levels (0..255) below which a picture shows nothing.
BLANK_DEVIATION = 3.0
#: Share of pixels at one end of the scale above which a picture is washed out or dark.
SATURATED_SHARE = 0.9
_BRIGHT, _DARK = 250, 5
_LEVELS = np.arange(256.0)
#: Checks are made on a picture of about this side: blankness and saturation survive the reduction.
_REDUCED_SIDE_PX = 64

_FORMATS = {ImageEncoding.IMAGE_ENCODING_JPEG: "JPEG", ImageEncoding.IMAGE_ENCODING_PNG: "PNG"}


@dataclass(frozen=True, slots=True)
class ImageFinding:
    """Size in pixels (0, 0 where it is unknown), and what is wrong; an empty reason means nothing is."""

    width: int = 0
    height: int = 0
    reason: str = ""
    detail: str = ""


def examine(image: Image) -> ImageFinding:
    """Never raises: whatever is wrong with the bytes becomes a finding."""
    if image.WhichOneof("content") == "claim":
        return ImageFinding(reason="claim_unsupported", detail="send the image inline, at most 512 KiB a request")
    if not image.data:
        return ImageFinding(reason="empty", detail="the image has no bytes")
    if image.encoding == ImageEncoding.IMAGE_ENCODING_RGB8:
        return _examine_rgb8(image)
    expected = _FORMATS.get(image.encoding)
    if expected is None:
        return ImageFinding(reason="unknown_encoding", detail="send a JPEG, a PNG or rgb8 with width and height")
    return _examine_compressed(image.data, expected)


def _examine_rgb8(image: Image) -> ImageFinding:
    wrong_side = _wrong_side(image.width, image.height)
    if wrong_side is not None:
        return wrong_side
    wanted = image.width * image.height * 3
    if len(image.data) != wanted:
        detail = f"{image.width}x{image.height} rgb8 is {wanted} bytes, these are {len(image.data)}"
        return ImageFinding(image.width, image.height, "wrong_size", detail)
    pixels = np.frombuffer(image.data, np.uint8).reshape(image.height, image.width, 3)
    step = max(min(image.width, image.height) // _REDUCED_SIDE_PX, 1)
    grey = pixels[::step, ::step].mean(axis=2).astype(np.uint8)
    return _worth(np.bincount(grey.ravel(), minlength=_LEVELS.size), image.width, image.height)


def _examine_compressed(data: bytes, expected: str) -> ImageFinding:
    try:
        with warnings.catch_warnings():
            # Pillow warns of a picture too large to decode before we have seen its header.
            warnings.simplefilter("ignore", PillowImage.DecompressionBombWarning)
            with PillowImage.open(io.BytesIO(data), formats=[expected]) as picture:
                width, height = picture.size
                wrong_side = _wrong_side(width, height)
                if wrong_side is not None:
                    return wrong_side
                if expected == "JPEG" and b"\xff\xd9" not in data[-1024:]:
                    return ImageFinding(width, height, "truncated", "the JPEG ends before its end marker")
                picture.draft("L", (_REDUCED_SIDE_PX, _REDUCED_SIDE_PX))
                grey = picture.convert("L") if picture.mode != "L" else picture
                return _worth(np.array(grey.histogram()), width, height)
    except PillowImage.DecompressionBombError:
        return ImageFinding(reason="too_large", detail=f"a side may be {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels")
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        reason = "truncated" if "truncated" in str(error) else "undecodable"
        return ImageFinding(reason=reason, detail=f"this is not a readable {expected}")


def _wrong_side(width: int, height: int) -> ImageFinding | None:
    if min(width, height) < MIN_SIDE_PX:
        reason = "too_small"
    elif max(width, height) > MAX_SIDE_PX:
        reason = "too_large"
    else:
        return None
    detail = f"{width}x{height}: a side may be {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels"
    return ImageFinding(width, height, reason, detail)


def _worth(counts: NDArray[np.int64], width: int, height: int) -> ImageFinding:
    """counts: pixels at each of the 256 grey levels."""
    share = counts / counts.sum()
    mean = share @ _LEVELS
    if share @ (_LEVELS - mean) ** 2 < BLANK_DEVIATION**2:
        return ImageFinding(width, height, "blank", "the picture has one colour only: is the lens covered?")
    if share[_BRIGHT:].sum() > SATURATED_SHARE:
        return ImageFinding(width, height, "saturated", "nearly every pixel is white: lower the exposure")
    if share[: _DARK + 1].sum() > SATURATED_SHARE:
        return ImageFinding(width, height, "saturated", "nearly every pixel is black: raise the exposure")
    return ImageFinding(width, height)
