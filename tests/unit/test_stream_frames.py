"""Frames of /v1/stream as bytes: whatever comes, it is read or it is a problem that can be told."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_api.stream import frames
from ingest_api.stream.frames import UnreadableFrame


def _status_of(read: Callable[[], object]) -> int:
    """200, or that of the problem that a frame makes."""
    try:
        read()
    except UnreadableFrame as error:
        return error.problem.status
    return 200


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_no_bytes_raise_anything_but_an_unreadable_frame(frame: bytes) -> None:
    assert _status_of(lambda: frames.read_binary(frame)) in (200, 400, 413)
    assert _status_of(lambda: frames.read_text(frame.decode(errors="replace"), 1000)) in (200, 400, 413)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)


@given(st.sampled_from(["infer", "resume", "ping", "hello", "x"]), st.dictionaries(st.text(max_size=12), _json))
@settings(max_examples=300, deadline=None)
def test_no_json_raises_anything_but_an_unreadable_frame(kind: str, content: dict[str, Any]) -> None:
    assert _status_of(lambda: frames.read_text(json.dumps({**content, "type": kind}), 10_000)) in (200, 400, 413)
