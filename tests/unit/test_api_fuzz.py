"""Whatever a caller sends, the API answers as its OpenAPI document says, and never with 500."""

from __future__ import annotations

import socket
import threading
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import schemathesis
import uvicorn
from hypothesis import settings
from schemathesis import Case, CheckFunction, HookContext
from schemathesis.specs.openapi import checks

from ingest_api.gateway import NoReply
from ingest_api.replies import Reply
from runtime.errors import Unavailable
from schemas.codes import STATUS, Code
from schemas.messages import InferenceRequest, Outcome, Rejection, Violation
from tests.unit.api_case import Api, body, chunk_outcome
from tests.unit.api_stand_ins import KEY, ListedHistory

_EXAMPLES = 60
_TIMEOUT_S = 30
_KEY = {"authorization": f"Bearer {KEY}"}
#: What the pipeline may say. Its own failures are 500 by right: no matter of what a caller sends.
_REFUSALS = [code for code in Code if STATUS[code] not in (405, 500)]
#: `positive_data_acceptance` is left out: that text is base64, or rows equally long, no schema says.
_PROMISES = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.missing_required_header,
    checks.unsupported_method,
    checks.ignored_auth,
]


def _choice(text: str) -> int:
    return zlib.crc32(text.encode(errors="replace"))


def answer_of_some_kind(request: InferenceRequest) -> Reply | Exception:
    """Actions, every refusal there is, replays and silence: which one follows from what was asked."""
    choice = _choice(f"{request.robot_id} {request.instruction} {request.state} {request.step}")
    replayed, expired = bool(choice & 1), bool(choice & 2)
    kind = choice // 4 % 8
    if kind == 0:
        return NoReply(acknowledged=replayed)
    if kind < 4:
        return Reply("c", chunk_outcome(request).SerializeToString(), replayed, expired)
    code = _REFUSALS[choice // 32 % len(_REFUSALS)]
    violation = Violation(field="state", reason="out_of_range", detail="0.3 is above 0.1")
    rejection = Rejection(code=code, status=STATUS[code], violations=[violation], retry_after_s=0.5)
    return Reply("c", Outcome(row_id="row-1", rejection=rejection).SerializeToString(), replayed, expired)


class SomeHistory(ListedHistory):
    """Rows for every second id, and now and then no database."""

    def find(self, customer_id: str, request_id: str) -> list[dict[str, Any]]:
        choice = _choice(request_id)
        if choice % 8 == 0:
            raise Unavailable("away")
        return [{"request_id": request_id, "status": "success"}] if choice % 2 else []


API = Api(history=SomeHistory())
API.gateway.answer = answer_of_some_kind
DOCUMENT = schemathesis.openapi.from_dict(API.app.openapi())
#: What exists here, by the field that names it: text at random would never come beyond the first look at it.
_KNOWN: dict[str, Any] = {name: body()[name] for name in ("model", "robot_type", "images")}


@DOCUMENT.hook
def map_body(context: HookContext, body: Any) -> Any:
    """Three of four bodies name what exists, so that what else they say is looked at."""
    if not isinstance(body, dict) or _choice(repr(sorted(map(str, body)))) % 4 == 0:
        return body
    known = {name: value for name, value in _KNOWN.items() if name in body}
    if "images" in known or "image" in body:
        known |= {"images": _KNOWN["images"], "image": None}
    return {**body, **known}


def _mended(body: Any) -> bool:
    return isinstance(body, dict) and any(body.get(name) == value for name, value in _KNOWN.items())


@DOCUMENT.hook
def map_path_parameters(context: HookContext, path_parameters: Any) -> Any:
    if isinstance(path_parameters, dict) and "model" in path_parameters and _choice(str(path_parameters)) % 2:
        return {**path_parameters, "model": _KNOWN["model"]}
    return path_parameters


def _vanished(case: Case[Any], url: str) -> bool:
    """Whether what makes a query wrong was not sent at all: an empty list has no text in it."""
    return bool(set(case.query or {}) - set(parse_qs(urlsplit(url).query, keep_blank_values=True)))


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The API behind its HTTP server, on a free port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(API.app, log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(_TIMEOUT_S)
    listener.close()


@DOCUMENT.parametrize()
@settings(max_examples=_EXAMPLES, derandomize=True, deadline=None, database=None)
def test_answers_are_as_declared_and_never_500(case: Case[Any], server: str) -> None:
    answer = case.call(base_url=server, headers=_KEY, timeout=_TIMEOUT_S)
    assert answer.status_code != 500, answer.text
    # Without the key: some checks ask again with none, or with a wrong one.
    transport = {"base_url": server, "timeout": _TIMEOUT_S}
    # What was wrong with a body may be what `map_body` has put right.
    harmless = _mended(case.body) or _vanished(case, str(answer.request.url))
    excluded: list[CheckFunction] = [checks.negative_data_rejection] if harmless else []
    case.validate_response(answer, checks=_PROMISES, excluded_checks=excluded, headers=_KEY, transport_kwargs=transport)
