"""Arrays in peers' frames: msgpack of openpi or vla-eval, JSON as json-numpy writes it. Plain numbers only."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ingest_api.problems import Problem, fault
from schemas import openpi_wire
from schemas.codes import Code
from schemas.openpi_wire import array_of

Array = NDArray[Any]
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class PictureFile:
    """An image that came as the file that it is: `png` or `jpeg`."""

    data: bytes


def unpack(frame: bytes) -> Any:
    """A msgpack frame of openpi or vla-eval. Raises Problem 400."""
    try:
        return openpi_wire.unpack(frame, _of_vla_eval)
    except ValueError as error:
        raise unreadable(f"the frame is unreadable: {error}"[:300]) from error


def _of_vla_eval(found: dict[Any, Any]) -> Any:
    if "__ndarray__" in found:
        return array_of(found.get("data"), found.get("dtype"), found.get("shape"))
    if "__image__" in found:
        if found.get("format") == "raw":
            return array_of(found.get("data"), found.get("dtype"), found.get("shape"))
        if not isinstance(found.get("data"), bytes):
            raise ValueError("an image has `data` in bytes")
        return PictureFile(found["data"])
    return found


def pack_vla_eval(content: Mapping[str, Any]) -> bytes:
    """As vla_eval.protocol.numpy_codec writes it: arrays under text keys."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return {"__ndarray__": True, "data": value.tobytes(), "dtype": value.dtype.str, "shape": list(value.shape)}
        raise TypeError(f"no {type(value).__name__} goes into a frame")

    packed: bytes = msgpack.packb(content, default=plain, use_bin_type=True)
    return packed


def from_json(value: Any, depth: int = 0) -> Any:
    """Arrays of json-numpy in what a JSON text held. Raises Problem 400."""
    if depth > _DEEPEST:
        raise unreadable(f"an observation has at most {_DEEPEST} levels")
    if isinstance(value, list):
        return [from_json(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    if "__numpy__" not in value:
        return {name: from_json(item, depth + 1) for name, item in value.items()}
    try:
        found = array_of(binascii.a2b_base64(value["__numpy__"]), value.get("dtype"), value.get("shape"))
    except (ValueError, TypeError) as error:
        raise unreadable(f"an array of json-numpy cannot be read: {error}"[:300]) from error
    return found


def to_json(array: Array) -> dict[str, Any]:
    """As json_numpy.default writes it."""
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
    return {"__numpy__": data, "dtype": array.dtype.str, "shape": list(array.shape)}


def unreadable(detail: str) -> Problem:
    return Problem(Code.MALFORMED, detail, violations=[fault("frame", "unreadable", detail)])
