"""openpi's wire: msgpack with numpy's arrays under keys of bytes (openpi_client/msgpack_numpy.py). Plain numbers only.

Spoken by the API towards robots and by the GPU worker towards remote engines. Nothing here is ever unpickled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

#: bool, integers and floats: no objects, no structures, no text.
_KINDS = frozenset("biuf")
_MOST_DIMENSIONS = 8


def pack(message: Mapping[str, Any]) -> bytes:
    """A map with arrays: keys of bytes, raw data in C order. Raises TypeError for what is no plain data."""
    packed: bytes = msgpack.packb(message, default=_plain)
    return packed


def unpack(data: bytes, hook: Callable[[dict[Any, Any]], Any] | None = None) -> Any:
    """What was packed. hook: sees every map that holds no array of openpi's. Raises ValueError."""

    def found(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" in value:
            return array_of(value.get(b"data"), value.get(b"dtype"), value.get(b"shape"))
        if b"__npgeneric__" in value:
            return _scalar(value.get(b"data"))
        return hook(value) if hook is not None else value

    try:
        return msgpack.unpackb(data, object_hook=found, strict_map_key=False)
    # What msgpack raises beside ValueError: TypeError for keys that cannot be keys, and its own for a cut message.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"msgpack with arrays of numbers cannot be read: {error}") from error


def array_of(data: object, dtype: object, shape: object) -> NDArray[Any]:
    """A read-only view of `data`. Raises ValueError for what is no array of numbers."""
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


def _scalar(value: object) -> object:
    if not isinstance(value, bool | int | float):
        raise ValueError("a scalar is a number")
    return value


def _plain(value: object) -> object:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    raise TypeError(f"no {type(value).__name__} goes into a frame")
