"""A door before a real S3 server that lets through what an IAM policy allows, as S3 itself would."""

from __future__ import annotations

import fnmatch
import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Policy = Mapping[str, Any]
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
#: Method -> action, on a bucket and on an object.
_BUCKET = {"GET": "s3:ListBucket", "HEAD": "s3:ListBucket", "PUT": "s3:CreateBucket", "DELETE": "s3:DeleteBucket"}
_OBJECT = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "PUT": "s3:PutObject", "DELETE": "s3:DeleteObject"}


def action_of(method: str, path: str) -> tuple[str, str]:
    """The action of a request in the path style, and the ARN that it is on."""
    bucket, _, key = unquote(urlsplit(path).path).lstrip("/").partition("/")
    found = (_OBJECT if key else _BUCKET).get(method, f"{method} is in no table of this door")
    return found, f"arn:aws:s3:::{bucket}/{key}" if key else f"arn:aws:s3:::{bucket}"


def allows(policy: Policy, action: str, resource: str, headers: Mapping[str, str]) -> bool:
    """Whether a statement allows it. Conditions: `Null` of `s3:if-none-match` alone."""
    for statement in policy["Statement"]:
        assert statement["Effect"] == "Allow"
        condition = statement.get("Condition", {"Null": {}})
        assert set(condition) == {"Null"}
        assert set(condition["Null"]) <= {"s3:if-none-match"}
        absent = {"s3:if-none-match": "false" if "if-none-match" in headers else "true"}
        if (
            action in statement["Action"]
            and any(fnmatch.fnmatchcase(resource, pattern) for pattern in statement["Resource"])
            and all(absent[key] == wanted for key, wanted in condition["Null"].items())
        ):
            return True
    return False


class Door:
    """Where it is, and which actions came through or were refused."""

    def __init__(self, endpoint: str, policy: Policy) -> None:
        self.passed: set[str] = set()
        self.refused: set[str] = set()
        self._policy = policy
        self._server = urlsplit(endpoint).netloc
        door = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                door.handle(self)

            do_GET = do_HEAD = do_PUT = do_DELETE = do_POST = handle_any  # noqa: N815 - named by http.server

            def log_message(self, *args: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.http.server_port}"

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        action, resource = action_of(request.command, request.path)
        headers = {name.lower(): value for name, value in request.headers.items()}
        if not allows(self._policy, action, resource, headers):
            self.refused.add(action)
            self._answer(request, 403, {}, _DENIED)
            return
        self.passed.add(action)
        connection = http.client.HTTPConnection(self._server, timeout=20)
        try:
            # All of its headers, `Host` too: they are signed.
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            self._answer(request, answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        request.send_response_only(status)
        left_out = {"transfer-encoding", "connection"}
        for name, value in headers.items():
            if name.lower() not in left_out and not (name.lower() == "content-length" and request.command != "HEAD"):
                request.send_header(name, value)
        if request.command != "HEAD":
            request.send_header("Content-Length", str(len(body)))
        elif "Content-Length" not in headers:
            request.send_header("Content-Length", "0")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)


@contextmanager
def guarded(endpoint: str, policy: Policy) -> Iterator[Door]:
    door = Door(endpoint, policy)
    thread = threading.Thread(target=door.http.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield door
    finally:
        door.http.shutdown()
        thread.join()
        door.http.server_close()
