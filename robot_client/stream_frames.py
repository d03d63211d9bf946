"""The frames of the WebSocket `/v1/stream` as a robot writes and reads them (docs/protocols.md). Pure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from google.protobuf.message import DecodeError

from robot_client.chunk import ActionChunk, BadReply, chunk_from_json, chunk_from_outcome, refusal_from_json
from robot_client.errors import Refused
from robot_client.request_json import request_json
from robot_client.retry import refuse
from schemas import headers as h
from schemas.codes import STATUS, Code
from schemas.messages import InferenceRequest, StreamAnswer

SUBPROTOCOL = "vlastream.v1"
#: Close codes after which coming back with the same key is of no use, and what they mean.
KEY_REFUSED = {4401: Code.UNAUTHENTICATED, 4403: Code.FORBIDDEN}
#: The server has closed because nobody asked anything: come back when there is something to ask.
IDLE = 4408


class Frames(StrEnum):
    """How requests are written. Protobuf carries pictures as they are, JSON as base64: a third more bytes."""

    PROTOBUF = "protobuf"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class Welcome:
    """What the server allows. in_flight: requests that may be unanswered at a time; resume_ids: in one `resume`."""

    in_flight: int
    frame_bytes: int
    resume_ids: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request; `request_id` is empty where it is about a frame that could not be read."""

    request_id: str
    content: Mapping[str, Any] | StreamAnswer

    def read(self) -> ActionChunk:
        """The chunk. Raises as `Transport.exchange` says."""
        try:
            return _from_message(self.content) if isinstance(self.content, StreamAnswer) else _from_json(self.content)
        except BadReply as error:
            raise Refused(str(error), code="bad_reply", status=200, request_id=self.request_id) from error


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of requests that were in flight when the connection dropped; `unknown` must be sent again."""

    unknown: Sequence[str]


@dataclass(frozen=True, slots=True)
class GoAway:
    """The server stops: nothing new is asked of it."""

    retry_after_s: float


class Unreadable(Exception):
    """A frame that is none of the protocol's."""


Frame = Welcome | Answer | Resumed | GoAway | None


def read_frame(frame: str | bytes) -> Frame:
    """None for a kind of frame that this version does not know. Raises Unreadable."""
    if isinstance(frame, bytes):
        try:
            answer = StreamAnswer.FromString(frame)
        except DecodeError as error:
            raise Unreadable(f"a binary frame of {len(frame)} bytes is no StreamAnswer") from error
        return Answer(answer.request_id, answer)
    try:
        return _read_text(json.loads(frame))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unreadable(f"not a frame of /v1/stream: {frame[:200]!r}") from error


def _read_text(content: Any) -> Frame:
    match content["type"]:
        case "chunk" | "error":
            return Answer(str(content["request_id"] or ""), content)
        case "welcome":
            limits = content["limits"]
            welcome = Welcome(int(limits["in_flight"]), int(limits["frame_bytes"]), int(limits["resume_ids"]))
            if min(welcome.in_flight, welcome.frame_bytes, welcome.resume_ids) < 1:
                raise ValueError("a limit below 1 allows nothing")
            return welcome
        case "resumed":
            return Resumed([str(request_id) for request_id in content["unknown"]])
        case "goaway":
            return GoAway(float(content["retry_after_s"]))
    return None


def write_request(request: InferenceRequest, frames: Frames) -> str | bytes:
    if frames is Frames.PROTOBUF:
        return request.SerializeToString()
    return json.dumps({"type": "infer", **request_json(request)}, separators=(",", ":"))


def write_resume(request_ids: Sequence[str]) -> str:
    return json.dumps({"type": "resume", "request_ids": list(request_ids)})


def too_large(request_id: str, size_bytes: int, limit_bytes: int) -> Refused:
    """Said before a frame is sent that the server would end the session for."""
    return Refused(
        f"the request has {size_bytes} bytes, at most {limit_bytes} fit: send smaller images",
        code=Code.TOO_LARGE,
        status=STATUS[Code.TOO_LARGE],
        request_id=request_id,
    )


def _from_json(content: Mapping[str, Any]) -> ActionChunk:
    if content["type"] == "chunk":
        return chunk_from_json(content)
    problem = content.get("problem")
    if not isinstance(problem, dict):
        raise BadReply("an error without its problem")
    status, told = problem.get("status"), content.get("retry_after_s")
    refusal = refusal_from_json(
        problem,
        status=status if isinstance(status, int) else STATUS[Code.INTERNAL],
        request_id=str(content["request_id"] or ""),
        retry_after_s=float(told) if isinstance(told, int | float) and 0 <= told < math.inf else None,
    )
    raise refuse(refusal)


def _from_message(answer: StreamAnswer) -> ActionChunk:
    marks = {name: "1" for name, set_ in ((h.REPLAYED, answer.replayed), (h.EXPIRED, answer.expired)) if set_}
    try:
        chunk = chunk_from_outcome(answer.outcome, {**marks, h.REQUEST_ID: answer.request_id}, recorded=answer.recorded)
    except Refused as refusal:
        raised = refuse(refusal)
        if raised is refusal:
            raise
        raise raised from refusal
    return chunk.with_total_ms(answer.total_ms) if answer.total_ms else chunk
