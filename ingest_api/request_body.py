"""From the body of POST /v1/inference to an InferenceRequest. Only what cannot be built is refused here."""

from __future__ import annotations

import binascii
import json
import re
from typing import Annotated, Any, Literal, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ingest_api.problems import Fault, Problem, fault
from schemas.codes import Code
from schemas.messages import ActionMatrix, Image, ImageEncoding, InferenceRequest, SafetyMode
from schemas.topics import MAX_INLINE_IMAGE_BYTES, MAX_MESSAGE_BYTES

SAFETY_MODES: dict[str, SafetyMode.ValueType] = {
    "reject": SafetyMode.SAFETY_MODE_REJECT,
    "clamp": SafetyMode.SAFETY_MODE_CLAMP,
    "monitor": SafetyMode.SAFETY_MODE_MONITOR,
}
_ENCODINGS: dict[str, ImageEncoding.ValueType] = {
    "jpeg": ImageEncoding.IMAGE_ENCODING_JPEG,
    "png": ImageEncoding.IMAGE_ENCODING_PNG,
    "rgb8": ImageEncoding.IMAGE_ENCODING_RGB8,
}
_SIGNATURES = ((b"\xff\xd8\xff", "jpeg"), (b"\x89PNG\r\n\x1a\n", "png"))
#: Room in a record for its key's overhead and the headers of all stages.
_RECORD_OVERHEAD_BYTES = 8 * 1024

_Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
_Uint32 = Annotated[int, Field(ge=0, lt=2**32)]
_Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_Uint64 = Annotated[int, Field(ge=0, lt=2**64)]

BodyT = TypeVar("BodyT", bound=BaseModel)


class Body(BaseModel):
    """A JSON body: exact types, and no field that we would silently ignore."""

    model_config = ConfigDict(extra="forbid", strict=True)


class ImageBody(Body):
    camera: str = Field(description="as in the model card, for example `base`")
    data: str = Field(description="base64 of the file, or a data: URL")
    encoding: Literal["jpeg", "png", "rgb8"] | None = Field(default=None, description="default: told by the bytes")
    width: _Uint32 | None = Field(default=None, description="pixels; needed for rgb8 only")
    height: _Uint32 | None = Field(default=None, description="pixels; needed for rgb8 only")


class OptionsBody(Body):
    ttl_ms: _Int32 | None = Field(default=None, description="1..60000, how long the observation is worth acting on")
    latest_only: bool = Field(default=False, description="a newer observation of this robot supersedes this one")
    seed: _Uint64 | None = Field(default=None, description="of the policy's noise; default: from the request id")
    safety_mode: Literal["reject", "clamp", "monitor"] | None = None


class InferenceBody(Body):
    """An observation and an instruction. One of `images` and `image` is needed."""

    request_id: str | None = Field(default=None, description="UUID; the same id with the same content is a retry")
    model: str | None = Field(default=None, description="default: the installation's default model")
    instruction: str = Field(description="3..500 characters, at least 3 words")
    images: list[ImageBody] | None = Field(default=None, description="together at most 512 KiB, decoded")
    image: str | None = Field(default=None, description="base64, of the model's first camera")
    state: list[float] = Field(description="proprioceptive state, order and units of the embodiment card")
    robot_id: str = Field(description="1..64 of A-Z a-z 0-9 . _ : -")
    robot_type: str = Field(description="an embodiment card's robot_type")
    episode_id: str | None = None
    step: _Uint64 | None = Field(default=None, description="the episode's control step, counted by the robot")
    captured_at_ms: _Int64 | None = Field(default=None, description="robot's clock, Unix epoch; recorded only")
    executed: list[list[float]] | None = Field(default=None, description="actions executed since the last request")
    options: OptionsBody | None = None


def announced_bytes(request: Request, limit_bytes: int) -> int:
    """What a body will have at most: as announced, or as much as it may where it comes in chunks."""
    announced = request.headers.get("content-length", "")
    return min(int(announced), limit_bytes) if announced.isdigit() else limit_bytes


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises Problem 413 as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit_bytes:
        raise _body_too_large(limit_bytes)
    parts: list[bytes] = []
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > limit_bytes:
            raise _body_too_large(limit_bytes)
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _body_too_large(limit_bytes: int) -> Problem:
    detail = f"a body may have {limit_bytes} bytes: compress the images or scale them down"
    # What is left of the body is not read, so the connection cannot be used again.
    return Problem(
        Code.TOO_LARGE, detail, violations=[fault("body", "too_large", detail)], headers={"connection": "close"}
    )


def parse_body(raw: bytes, kind: type[BodyT]) -> BodyT:
    """A validated body. NaN and infinities pass: judging values is the gate's. Raises Problem 400."""
    return validated(parse_json(raw), kind)


def parse_json(raw: bytes) -> dict[str, Any]:
    """The object that a text holds. Raises Problem 400."""
    try:
        content = orjson.loads(raw)
    except orjson.JSONDecodeError:
        content = _parse_leniently(raw)
    if not isinstance(content, dict):
        raise _malformed("the body is not a JSON object", [fault("body", "not_an_object", "send a JSON object")])
    return content


def validated(content: dict[str, Any], kind: type[BodyT]) -> BodyT:
    """An object as what it is to be. Raises Problem 400."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        faults = [
            fault(_path(item["loc"]), item["type"], item["msg"])
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        named = ", ".join(dict.fromkeys(f["field"] for f in faults[:5]))
        raise _malformed(f"these fields are missing, unknown or of a wrong type: {named}", faults) from error


def _parse_leniently(raw: bytes) -> Any:
    try:
        content = json.loads(raw)
        # The standard library lets lone surrogates pass, which no message can hold.
        json.dumps(content, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _malformed("the body is not JSON", [fault("body", "not_json", "send a JSON object in UTF-8")]) from error
    return content


def _path(location: tuple[int | str, ...]) -> str:
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".") or "body"


def _malformed(detail: str, faults: list[Fault]) -> Problem:
    return Problem(Code.MALFORMED, detail, violations=faults)


def build_request(
    body: InferenceBody, *, request_id: str, model: str, first_camera: str, default_ttl_ms: int
) -> InferenceRequest:
    """The message for the log. Raises Problem: 400 for what cannot be decoded, 413 over the image budget, 422 ttl 0."""
    options = body.options or OptionsBody()
    if options.ttl_ms == 0:
        # In the message 0 means the default, so the gate could not refuse it.
        detail = "0 ms: use at least 1, or leave it out for the default"
        violation = fault("options.ttl_ms", "out_of_range", detail)
        raise Problem(Code.INVALID_REQUEST, detail, violations=[violation])
    request = InferenceRequest(
        request_id=request_id,
        robot_id=body.robot_id,
        robot_type=body.robot_type,
        model=model,
        instruction=body.instruction,
        state=body.state,
        episode_id=body.episode_id or "",
        step=body.step or 0,
        captured_at_ms=body.captured_at_ms or 0,
        ttl_ms=options.ttl_ms if options.ttl_ms is not None else default_ttl_ms,
    )
    request.images.extend(_images(body, first_camera))
    if body.executed is not None:
        request.executed.CopyFrom(_matrix(body.executed))
    if options.latest_only:
        request.options.latest_only = True
    if options.seed is not None:
        request.options.seed = options.seed
    if options.safety_mode is not None:
        request.options.safety_mode = SAFETY_MODES[options.safety_mode]
    return request


def check_record_size(value: bytes, key: bytes) -> None:
    """Raises Problem 413 for a record that the broker would not take."""
    if len(value) + len(key) > MAX_MESSAGE_BYTES - _RECORD_OVERHEAD_BYTES:
        detail = f"the request makes a message of {len(value)} bytes: it may have about {MAX_MESSAGE_BYTES}"
        raise Problem(Code.TOO_LARGE, detail, violations=[fault("body", "too_large", detail)])


def _images(body: InferenceBody, first_camera: str) -> list[Image]:
    if (body.images is None) == (body.image is None):
        reason = "missing" if body.images is None else "ambiguous"
        detail = "send `images`, or `image` for a model with one camera: one of the two"
        raise _malformed(detail, [fault("images", reason, detail)])
    if body.image is not None:
        sent = [("image", ImageBody(camera=first_camera, data=body.image))]
    else:
        sent = [(f"images[{index}].data", image) for index, image in enumerate(body.images or [])]
    budget = MAX_INLINE_IMAGE_BYTES
    images = []
    for field, image in sent:
        data = decode_base64(image.data, field)
        budget -= len(data)
        if budget < 0:
            detail = f"images together may have {MAX_INLINE_IMAGE_BYTES} bytes: compress them or scale them down"
            raise Problem(Code.TOO_LARGE, detail, violations=[fault("images", "too_large", detail)])
        images.append(
            Image(
                camera=image.camera,
                encoding=_encoding(image.encoding, data),
                width=image.width or 0,
                height=image.height or 0,
                data=data,
            )
        )
    return images


def decode_base64(text: str, field: str) -> bytes:
    """The bytes of base64 or of a data: URL; line breaks are passed over. Raises Problem 400."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            detail = "a data: URL of an image ends its head with ;base64 and a comma"
            raise _malformed(detail, [fault(field, "not_base64", detail)])
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        try:
            return binascii.a2b_base64(re.sub(r"\s+", "", text), strict_mode=True)
        except ValueError as error:
            detail = "this is not base64 of RFC 4648 with padding"
            raise _malformed(f"{field}: {detail}", [fault(field, "not_base64", detail)]) from error


def _encoding(named: str | None, data: bytes) -> ImageEncoding.ValueType:
    if named is None:
        named = next((name for signature, name in _SIGNATURES if data.startswith(signature)), None)
    return ImageEncoding.IMAGE_ENCODING_UNSPECIFIED if named is None else _ENCODINGS[named]


def _matrix(rows: list[list[float]]) -> ActionMatrix:
    """Rows of equal length; none at all is an empty matrix. Raises Problem 400."""
    dim = len(rows[0]) if rows else 0
    if any(len(row) != dim for row in rows):
        detail = "every row has the same number of values"
        raise _malformed(f"executed: {detail}", [fault("executed", "ragged", detail)])
    return ActionMatrix(horizon=len(rows), dim=dim, values=[value for row in rows for value in row])
