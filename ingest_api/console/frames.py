"""Images of a request as a browser shows them. Bytes of robots are passed on, never decoded here."""

from __future__ import annotations

import io

import PIL.Image
from fastapi import Request, Response

from ingest_api.console.frame import PAGE_HEADERS
from ingest_api.console.session import Viewer
from ingest_api.keys import origin_of
from ingest_api.reading import Row
from runtime.audit import event
from schemas.messages import AuditEvent, Image, ImageEncoding, InferenceRequest

_SIGNATURES = {
    ImageEncoding.IMAGE_ENCODING_JPEG: (b"\xff\xd8\xff", "image/jpeg"),
    ImageEncoding.IMAGE_ENCODING_PNG: (b"\x89PNG\r\n\x1a\n", "image/png"),
}
#: A picture and nothing else, whatever its bytes say.
_HEADERS = {
    **PAGE_HEADERS,
    "content-security-policy": "default-src 'none'; sandbox; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "content-disposition": "inline",
}
_BLANK = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 160 120"><rect width="160" height="120" fill="#8a94a0"/>'
    '<path d="M60 40h40v40H60z M60 40l40 40 M100 40l-40 40" fill="none" stroke="#fff" stroke-width="2"/></svg>'
)


def cameras(request: InferenceRequest) -> list[str]:
    """Names of the images that can be shown, in the order of the request."""
    return [image.camera for image in request.images if image.WhichOneof("content") == "data" and image.data]


def picture(request: InferenceRequest, camera: str) -> Response | None:
    """The image of a camera as an answer; None where the request has none that a browser could show.

    Encodes pixels (rgb8) as PNG: CPU work of some milliseconds.
    """
    image = next((each for each in request.images if each.camera == camera and each.data), None)
    if image is None:
        return None
    found = _rgb8(image) if image.encoding == ImageEncoding.IMAGE_ENCODING_RGB8 else _file(image)
    return None if found is None else Response(found[0], media_type=found[1], headers=_HEADERS)


def _file(image: Image) -> tuple[bytes, str] | None:
    """A file whose first bytes are those of its kind: nothing is shown as a picture that only claims to be one."""
    signature, kind = _SIGNATURES.get(image.encoding, (b"", ""))
    if not signature:
        signature, kind = next(((s, k) for s, k in _SIGNATURES.values() if image.data.startswith(s)), (b"", ""))
    return (image.data, kind) if signature and image.data.startswith(signature) else None


def _rgb8(image: Image) -> tuple[bytes, str] | None:
    if len(image.data) != image.width * image.height * 3 or not image.data:
        return None
    file = io.BytesIO()
    PIL.Image.frombytes("RGB", (image.width, image.height), image.data).save(file, "PNG", compress_level=1)
    return file.getvalue(), "image/png"


def blank() -> Response:
    """Stands in a list where the log has a frame no more."""
    return Response(_BLANK, media_type="image/svg+xml", headers=_HEADERS)


def look_of(request: Request, viewer: Viewer, row: Row, camera: str) -> AuditEvent | None:
    """What the audit log keeps of a look at the frame of a row; None where it is the viewer's own customer's."""
    if row["customer_id"] == viewer.key.customer_id:
        return None
    return event(
        "console.frame",
        actor=viewer.key.actor,
        origin=origin_of(request),
        target=f"request:{row['id']}",
        customer_id=row["customer_id"],
        details={"camera": camera},
    )
