"""Pixels of peers become what a request carries: JPEG, or the pixels as they are. CPU work: not for the event loop."""

from __future__ import annotations

import io

import PIL.Image

from ingest_api.peers.arrays import Array, PictureFile
from ingest_api.problems import Problem, fault
from schemas.codes import Code
from schemas.messages import Image, ImageEncoding
from schemas.topics import MAX_INLINE_IMAGE_BYTES

#: Longest side, as the gate allows.
MOST_PIXELS_A_SIDE = 2048
#: Tried one after the other until the images fit.
_QUALITIES = (95, 85, 70)
_SIGNATURES = {
    b"\xff\xd8\xff": ImageEncoding.IMAGE_ENCODING_JPEG,
    b"\x89PNG\r\n\x1a\n": ImageEncoding.IMAGE_ENCODING_PNG,
}


def images_of(pictures: dict[str, Array | PictureFile], *, exact: bool) -> list[Image]:
    """Images for a request, together within the inline limit.

    exact: pixels as they came (rgb8). Otherwise JPEG; what came as a file stays that file where it fits.
    Raises Problem 422 for what is no picture, 413 for what does not fit.
    """
    if exact:
        images = [_file(c, p) if isinstance(p, PictureFile) else _rgb8(c, p) for c, p in pictures.items()]
        if _fits(images):
            return images
        raise _too_large("they do not fit as pixels: leave out images=rgb8, or scale them down")
    for quality in _QUALITIES:
        images = [
            _file(camera, picture) if isinstance(picture, PictureFile) and quality == _QUALITIES[0]
            else _jpeg(camera, picture, quality)
            for camera, picture in pictures.items()
        ]  # fmt: skip
        if _fits(images):
            return images
    raise _too_large("scale them down")


def _fits(images: list[Image]) -> bool:
    return sum(len(image.data) for image in images) <= MAX_INLINE_IMAGE_BYTES


def _too_large(advice: str) -> Problem:
    detail = f"images together may have {MAX_INLINE_IMAGE_BYTES} bytes: {advice}"
    return Problem(Code.TOO_LARGE, detail, violations=[fault("images", "too_large", detail)])


def _file(camera: str, picture: PictureFile) -> Image:
    for signature, encoding in _SIGNATURES.items():
        if picture.data.startswith(signature):
            return Image(camera=camera, encoding=encoding, data=picture.data)
    raise _no_picture(camera, "it is neither PNG nor JPEG")


def _rgb8(camera: str, pixels: Array) -> Image:
    height, width, _ = pixels.shape
    return Image(
        camera=camera,
        encoding=ImageEncoding.IMAGE_ENCODING_RGB8,
        width=width,
        height=height,
        data=pixels.tobytes(),
    )


def _jpeg(camera: str, picture: Array | PictureFile, quality: int) -> Image:
    try:
        if isinstance(picture, PictureFile):
            opened: PIL.Image.Image = PIL.Image.open(io.BytesIO(picture.data), formats=("PNG", "JPEG"))
        else:
            opened = PIL.Image.fromarray(picture)
        if max(opened.size) > MOST_PIXELS_A_SIDE:
            raise _no_picture(camera, f"a side has more than {MOST_PIXELS_A_SIDE} pixels")
        buffer = io.BytesIO()
        opened.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0)
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise _no_picture(camera, "it cannot be read as a picture") from error
    return Image(
        camera=camera, encoding=ImageEncoding.IMAGE_ENCODING_JPEG, width=opened.width, height=opened.height,
        data=buffer.getvalue(),
    )  # fmt: skip


def _no_picture(camera: str, why: str) -> Problem:
    detail = f"the image of {camera}: {why}"
    return Problem(Code.INVALID_IMAGE, detail, violations=[fault(f"image.{camera}", "unreadable", detail)])
