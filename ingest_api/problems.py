"""Problem documents (RFC 9457): the one shape of every error that the API answers."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from runtime.errors import Fatal, Overloaded, Retry, Unavailable, VlastreamError
from schemas.codes import Code, status_of

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:vlastream:problem:"
#: Violations listed in one document: a body may hold a million faults.
MAX_VIOLATIONS = 32
_LONGEST_FIELD = 96


class Fault(TypedDict):
    """One reason of a refusal: which field, a short code, and a sentence that says what to do."""

    field: str
    reason: str
    detail: str


def fault(field: str, reason: str, detail: str) -> Fault:
    """A fault whose field may have been named by the caller: shortened and printable."""
    printable = "".join(c for c in field[:_LONGEST_FIELD] if c.isprintable())
    return {"field": printable + ("..." if len(field) > _LONGEST_FIELD else ""), "reason": reason, "detail": detail}


class Problem(VlastreamError):
    """Ends a request with a problem document. `request_id` is filled in by whoever knows it."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        status: int | None = None,
        violations: Sequence[Fault] = (),
        retry_after_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = str(code)
        self.detail = detail
        self.status = status if status is not None else status_of(code)
        self.violations = list(violations)[:MAX_VIOLATIONS]
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        self.members = dict(members or {})

    def response(self, request_id: str | None = None) -> Response:
        """The document, with its status and Retry-After."""
        headers = dict(self.headers)
        if self.retry_after_s > 0:
            headers["retry-after"] = str(max(math.ceil(self.retry_after_s), 1))
        content = orjson.dumps(self.document(request_id), option=orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY)
        return Response(content, status_code=self.status, headers=headers, media_type=MEDIA_TYPE)

    def document(self, request_id: str | None = None) -> dict[str, Any]:
        """Extension members beside those of RFC 9457: code, request_id, violations and `members`."""
        return {
            "type": TYPE_PREFIX + self.code,
            "title": self.code.replace("_", " ").capitalize(),
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
            "request_id": request_id or new_request_id(),
            "violations": self.violations,
            **self.members,
        }


def new_request_id() -> str:
    return str(uuid.uuid4())


def problem_of(error: VlastreamError) -> Problem:
    """Our own errors as problems; what only an operator can mend is not told to callers."""
    match error:
        case Problem():
            return error
        case Overloaded():
            return Problem(Code.OVERLOADED, str(error), retry_after_s=error.retry_after_s)
        case Retry():
            return Problem(Code.OVERLOADED, str(error), retry_after_s=max(error.after_s, 1.0))
        case Unavailable():
            return Problem(Code.UNAVAILABLE, "a server behind this API is away", retry_after_s=error.retry_after_s)
        case Fatal():
            return Problem(Code.UNAVAILABLE, "this API process cannot take requests", retry_after_s=2.0)
        case _:
            return Problem(Code.INTERNAL, "the request could not be handled")


_OF_STATUS = {
    400: Code.MALFORMED,
    401: Code.UNAUTHENTICATED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    413: Code.TOO_LARGE,
}


def install(app: FastAPI) -> None:
    """Every refusal of the framework itself becomes a problem document too."""

    async def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        code = _OF_STATUS.get(error.status_code, Code.INTERNAL)
        detail = {
            404: f"there is nothing at {request.url.path[:200]}: see /docs",
            405: f"{request.method[:20]} is not served at {request.url.path[:200]}: see /docs",
        }.get(error.status_code, str(error.detail))
        return Problem(code, detail, status=error.status_code, headers=error.headers).response()

    async def on_our_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, VlastreamError)
        request_id = new_request_id()
        if not isinstance(error, Problem):
            log.warning("%s", error, extra={"action": "refuse", "request_id": request_id})
        return problem_of(error).response(request_id)

    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(VlastreamError, on_our_error)
