"""Arrays in peers' frames: msgpack as openpi and vla-eval write it, JSON as json-numpy does. Plain numbers only."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from ingest_api.problems import Problem, fault
from schemas.codes import Code

Array = NDArray[Any]
#: bool, integers and floats: no objects, no structures, no text.
_KINDS = frozenset("biuf")
_MOST_DIMENSIONS = 8
_DEEPEST = 16


@dataclass(frozen=True, slots=True)
class PictureFile:
    """An image that came as the file that it is: `png` or `jpeg`."""

    data: bytes


def array_of(data: object, dtype: object, shape: object) -> Array:
    """Raises ValueError for what is no array of numbers."""
    if not isinstance(data, bytes) or not isinstance(dtype, str) or len(dtype) > 4:
        raise ValueError("an array has `data` in bytes and a plain `dtype`")
    if not isinstance(shape, list | tuple) or len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"an array has a `shape` of at most {_MOST_DIMENSIONS} numbers")
    if not all(isinstance(size, int) and 0 <= size < 2**31 for size in shape):
        raise ValueError("a `shape` has whole numbers")
    try:
        kind = np.dtype(dtype)
    except TypeError as error:
        raise ValueError(f"{dtype!r} is no dtype") from error
    if kind.kind not in _KINDS or kind.itemsize * math.prod(shape) != len(data):
        raise ValueError("`data`, `dtype` and `shape` do not agree, or the dtype is no number")
    return np.frombuffer(data, kind).reshape(shape)


def unpack(frame: bytes) -> Any:
    """A msgpack frame of openpi or vla-eval. Raises Problem 400."""
    try:
        return msgpack.unpackb(frame, object_hook=_msgpack_hook, strict_map_key=False)
    # What msgpack raises beside ValueError: TypeError for keys that cannot be keys, and its own for a cut message.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise unreadable(f"the frame is not msgpack with arrays of numbers: {error}"[:300]) from error


def _msgpack_hook(found: dict[Any, Any]) -> Any:
    if b"__ndarray__" in found:
        return array_of(found.get(b"data"), found.get(b"dtype"), found.get(b"shape"))
    if b"__npgeneric__" in found:
        return found.get(b"data")
    if "__ndarray__" in found:
        return array_of(found.get("data"), found.get("dtype"), found.get("shape"))
    if "__image__" in found:
        if found.get("format") == "raw":
            return array_of(found.get("data"), found.get("dtype"), found.get("shape"))
        if not isinstance(found.get("data"), bytes):
            raise ValueError("an image has `data` in bytes")
        return PictureFile(found["data"])
    return found


def pack_openpi(content: Mapping[str, Any]) -> bytes:
    """As openpi_client.msgpack_numpy writes it: arrays under bytes keys."""

    def plain(value: object) -> object:
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": value.shape,
            }
        raise TypeError(f"no {type(value).__name__} goes into a frame")

    packed: bytes = msgpack.packb(content, default=plain)
    return packed


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
