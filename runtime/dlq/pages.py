"""A letter for people to read: one line, or everything. What a robot wrote does not get to move the cursor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError, Message

from runtime.dlq.letters import Letter
from schemas.messages import Completion, InferenceRequest, Outcome
from schemas.topics import OUTCOMES, RESULTS

HEADING = f"{'LETTER':<36} {'DIED':<20} {'REASON':<16} {'STAGE':<14} {'REQUEST':<36} {'BYTES':>8}"
#: Longest text and list that are shown whole: a camera frame would fill the screen.
_LONGEST_TEXT = 160
_LONGEST_LIST = 24
_HEX_BYTES = 512


def line(letter: Letter) -> str:
    """One line: place, time of death, reason, stage, request id where known, size of the value."""
    size = f"{len(letter.value or b'')}{'+' if letter.cut_bytes else ''}"
    return printable(
        f"{letter.place!s:<36} {moment(letter.died_at_ms):<20} {letter.reason or '-':<16} {letter.stage or '-':<14} "
        f"{letter.request_id or '-':<36} {size:>8}"
    )


def page(letter: Letter) -> Iterator[str]:
    """All headers, and the value as the message that it should be, or in hex."""
    yield printable(f"letter   {letter.place}, died {moment(letter.died_at_ms)}: {letter.reason or 'no reason given'}")
    appended = f", appended {moment(letter.appended_at_ms)}" if letter.appended_at_ms is not None else ""
    yield printable(f"record   {letter.source or 'not known: the letter lacks its headers'}{appended}")
    yield printable(f"key      {_text(letter.key)}")
    yield "headers"
    for name, lines in header_lines(letter):
        yield f"  {name}: {lines[0]}"
        yield from (f"    {part}" for part in lines[1:])
    yield from value_page(letter)


def header_lines(letter: Letter) -> list[tuple[str, list[str]]]:
    """Name and lines, at least one, of every header."""
    return [
        (printable(name), [printable(part) for part in _text(value).split("\\n")]) for name, value in letter.raw_headers
    ]


def value_page(letter: Letter) -> Iterator[str]:
    """What the value is, then as the message that it should be, or in hex."""
    value = letter.value or b""
    cut = f", {letter.cut_bytes} more were cut off" if letter.cut_bytes else ""
    message = _decoded(letter)
    if message is not None:
        yield f"value    {len(value)} bytes{cut}, as {type(message).__name__}"
        content = _shortened(MessageToDict(message, preserving_proto_field_name=True))
        yield json.dumps(content, indent=2)
        return
    yield f"value    {len(value)} bytes{cut}, no message that this version can read"
    for start in range(0, min(len(value), _HEX_BYTES), 16):
        part = value[start : start + 16]
        yield f"  {start:06x}  {part.hex(' '):<47}  {''.join(chr(b) if 32 <= b < 127 else '.' for b in part)}"
    if len(value) > _HEX_BYTES:
        yield f"  ... {len(value) - _HEX_BYTES} bytes more"


def moment(at_ms: int) -> str:
    """ISO time in UTC, to the second."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError):
        return f"{at_ms} ms"


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def _text(value: bytes | None) -> str:
    """ASCII as it is, everything else escaped."""
    return "none" if value is None else value.decode("ascii", "backslashreplace").replace("\n", "\\n")


def _decoded(letter: Letter) -> Message | None:
    """The value as its topic's message; None where it is none, or where nothing in it is known."""
    kind: type[Message] = {RESULTS: Completion, OUTCOMES: Outcome}.get(letter.topic, InferenceRequest)
    if letter.cut_bytes or not letter.value:
        return None
    try:
        message = kind.FromString(letter.value)
    except DecodeError:
        return None
    return message if message.ListFields() else None


def _shortened(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _shortened(value) for name, value in content.items()}
    if isinstance(content, list):
        kept = [_shortened(value) for value in content[:_LONGEST_LIST]]
        return [*kept, f"... {len(content) - _LONGEST_LIST} more"] if len(content) > _LONGEST_LIST else kept
    if isinstance(content, str) and len(content) > _LONGEST_TEXT:
        return f"{content[:_LONGEST_TEXT]}... {len(content)} characters"
    return content
