"""The one middleware: measures every HTTP request, and turns what nobody caught into a problem document."""

from __future__ import annotations

import logging
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ingest_api.problems import Problem, new_request_id
from runtime.metrics import Metrics
from schemas.codes import Code

log = logging.getLogger(__name__)

#: As nginx counts a client that left before its request was there whole.
_CLIENT_LEFT = 499
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Measured:
    """Pure ASGI. Routes are counted by their template, so that paths make no new series."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            # Nobody is there to be answered, and nothing of ours has failed.
            status = status or _CLIENT_LEFT
        except Exception:
            request_id = new_request_id()
            log.exception("request failed", extra={"action": "internal_error", "request_id": request_id})
            if status == 0:
                answer = Problem(Code.INTERNAL, "the request could not be handled: name its request_id to the operator")
                await answer.response(request_id)(scope, receive, watched)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "OTHER"
            self._metrics.http_requests.labels(route, method, str(status)).inc()
            self._metrics.http_duration.labels(route).observe(time.perf_counter() - started)
