"""A small OTLP/HTTP collector for tests: keeps the spans that processes export to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, slots=True)
class SeenSpan:
    """Ids in hexadecimal; `parent_id` is empty for the first of a trace."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    error: str
    attributes: dict[str, str]


class Collector:
    """Listens on a free loopback port from `with` on."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._spans: list[SeenSpan] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                known = self.path == "/v1/traces"
                if known:
                    collector._take(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200 if known else 404)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Exports are not logged."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def trace(
        self, trace_id: str, complete: Callable[[list[SeenSpan]], bool], timeout_s: float = 30.0
    ) -> list[SeenSpan]:
        """The spans of a trace in the order of their start, once `complete`; what is there after `timeout_s`."""
        end = time.monotonic() + timeout_s
        with self._arrived:
            while True:
                found = sorted((s for s in self._spans if s.trace_id == trace_id), key=lambda span: span.start_ns)
                left_s = end - time.monotonic()
                if complete(found) or left_s <= 0:
                    return found
                self._arrived.wait(left_s)

    def _take(self, request: ExportTraceServiceRequest) -> None:
        with self._arrived:
            for of_process in request.resource_spans:
                about = {pair.key: pair.value.string_value for pair in of_process.resource.attributes}
                for scope in of_process.scope_spans:
                    for span in scope.spans:
                        seen = SeenSpan(
                            service=about["service.name"],
                            name=span.name,
                            trace_id=span.trace_id.hex(),
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            start_ns=span.start_time_unix_nano,
                            end_ns=span.end_time_unix_nano,
                            error=span.status.message,
                            attributes={pair.key: pair.value.string_value for pair in span.attributes},
                        )
                        self._spans.append(seen)
            self._arrived.notify_all()
