"""The frames of /v1/stream (docs/protocols.md): what comes in is checked, what goes out is made. No I/O."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from google.protobuf.message import DecodeError
from pydantic import Field

from ingest_api.answers import chunk_document
from ingest_api.exchange import Actions
from ingest_api.problems import Problem, fault
from ingest_api.request_body import Body, InferenceBody, parse_json, validated
from schemas.codes import Code
from schemas.messages import InferenceRequest, Outcome, Rejection, StreamAnswer, Violation
from schemas.topics import MAX_INLINE_IMAGE_BYTES

PROTOCOL = "vlastream.v1"
MOST_RESUMED = 64
_JSON = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_LONGEST_ID = 128
_RequestId = Annotated[str, Field(min_length=1, max_length=_LONGEST_ID)]


class Hello(Body):
    type: Literal["hello"]
    key: str


class Infer(InferenceBody):
    type: Literal["infer"]
    request_id: _RequestId
    traceparent: str = ""


class Resume(Body):
    type: Literal["resume"]
    request_ids: list[_RequestId] = Field(min_length=1, max_length=MOST_RESUMED)


class Ping(Body):
    type: Literal["ping"]
    nonce: Annotated[str, Field(max_length=_LONGEST_ID)] | int | float | None = None


class UnreadableFrame(Exception):
    """A frame that asks nothing. `request_id` is what it named, if it named one."""

    def __init__(self, problem: Problem, request_id: str | None = None) -> None:
        super().__init__(problem.detail)
        self.problem = problem
        self.request_id = request_id


_KINDS: dict[str, type[Infer] | type[Resume] | type[Ping] | type[Hello]] = {
    "infer": Infer,
    "resume": Resume,
    "ping": Ping,
    "hello": Hello,
}


def read_text(text: str, limit_bytes: int) -> Infer | Resume | Ping | Hello:
    """A JSON frame. Raises UnreadableFrame."""
    if len(text) > limit_bytes:
        detail = f"a JSON frame may have {limit_bytes} bytes: compress the images, or send protobuf"
        raise UnreadableFrame(Problem(Code.TOO_LARGE, detail, violations=[fault("frame", "too_large", detail)]))
    request_id = None
    try:
        content = parse_json(text.encode(errors="replace"))
        named = content.get("request_id")
        request_id = named[:_LONGEST_ID] if isinstance(named, str) and named else None
        kind = content.get("type")
        found = _KINDS.get(kind) if isinstance(kind, str) else None
        if found is None:
            detail = f"`type` is one of {', '.join(_KINDS)}"
            raise Problem(Code.MALFORMED, detail, violations=[fault("type", "unknown", detail)])
        return validated(content, found)
    except Problem as problem:
        raise UnreadableFrame(problem, request_id) from problem


def read_binary(frame: bytes) -> InferenceRequest:
    """A protobuf frame: a request with an id. Raises UnreadableFrame."""
    try:
        message = InferenceRequest.FromString(frame)
    except DecodeError as error:
        detail = "a binary frame is one vla.v1.InferenceRequest"
        problem = Problem(Code.MALFORMED, detail, violations=[fault("frame", "not_protobuf", detail)])
        raise UnreadableFrame(problem) from error
    if not 0 < len(message.request_id) <= _LONGEST_ID:
        detail = "name the request by a UUID: its answer is told apart by it"
        raise UnreadableFrame(Problem(Code.MALFORMED, detail, violations=[fault("request_id", "missing", detail)]))
    if sum(len(image.data) for image in message.images) > MAX_INLINE_IMAGE_BYTES:
        detail = f"images together may have {MAX_INLINE_IMAGE_BYTES} bytes: compress them or scale them down"
        problem = Problem(Code.TOO_LARGE, detail, violations=[fault("images", "too_large", detail)])
        raise UnreadableFrame(problem, message.request_id)
    return message


def welcome(session_id: str, *, limits: dict[str, int], idle_timeout_s: float, resume_window_s: float) -> str:
    return text_of(
        {
            "type": "welcome",
            "protocol": PROTOCOL,
            "session_id": session_id,
            "limits": limits,
            "idle_timeout_s": idle_timeout_s,
            "resume_window_s": resume_window_s,
        }
    )


def goaway(retry_after_s: float) -> str:
    return text_of({"type": "goaway", "retry_after_s": retry_after_s})


def pong(nonce: str | float | None) -> str:
    return text_of({"type": "pong"} if nonce is None else {"type": "pong", "nonce": nonce})


def resumed(*, pending: list[str], answered: list[str], unknown: list[str]) -> str:
    return text_of({"type": "resumed", "pending": pending, "answered": answered, "unknown": unknown})


def chunk(actions: Actions, *, binary: bool) -> str | bytes:
    outcome = actions.outcome
    if binary:
        return StreamAnswer(
            request_id=outcome.request.request_id,
            outcome=outcome,
            replayed=actions.replayed,
            expired=actions.expired,
            recorded=True,
            total_ms=actions.timings_ms["total"],
        ).SerializeToString()
    document = chunk_document(outcome, timings=actions.timings_ms, replayed=actions.replayed, expired=actions.expired)
    return text_of({"type": "chunk", **document})


def refusal(problem: Problem, request_id: str | None, *, binary: bool = False) -> str | bytes:
    """request_id: what the caller asked under; None: the frame named none."""
    if binary and request_id is not None:
        return StreamAnswer(
            request_id=request_id,
            outcome=Outcome(rejection=_rejection(problem)),
            replayed=bool(problem.members.get("replayed")),
            recorded=bool(problem.members.get("recorded")),
        ).SerializeToString()
    frame: dict[str, Any] = {"type": "error", "request_id": request_id, "problem": problem.document(request_id)}
    if problem.retry_after_s > 0:
        frame["retry_after_s"] = problem.retry_after_s
    return text_of(frame)


def _rejection(problem: Problem) -> Rejection:
    violations = [Violation(**violation) for violation in problem.violations]
    if not violations:
        violations = [Violation(field="request", reason=problem.code, detail=problem.detail)]
    return Rejection(
        code=problem.code, status=problem.status, violations=violations, retry_after_s=problem.retry_after_s
    )


def text_of(document: dict[str, Any]) -> str:
    return orjson.dumps(document, option=_JSON).decode()
