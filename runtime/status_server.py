"""/metrics, /livez and /readyz of every role but the API, on a port of its own."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from runtime.lifecycle import Deadline
from runtime.metrics import CONTENT_TYPE, Metrics

#: What a role waits for before it is ready; empty when it is.
Waiting = Callable[[], list[str]]


class StatusServer:
    """Serves from one thread; `waiting()` is asked on each /readyz, `alive()` on each /livez.

    metrics: None serves none (ENABLE_PROMETHEUS=false).
    """

    def __init__(
        self,
        *,
        host: str,
        port: int,
        metrics: Metrics | None,
        waiting: Waiting,
        alive: Callable[[], bool] = lambda: True,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/metrics" and metrics is not None:
                    self._answer(200, metrics.exposition(), CONTENT_TYPE)
                elif self.path == "/livez":
                    live = alive()
                    self._answer(200 if live else 503, json.dumps({"status": "ok" if live else "stuck"}).encode())
                elif self.path == "/readyz":
                    reasons = waiting()
                    body = {"status": "waiting" if reasons else "ready", "waiting_for": reasons}
                    self._answer(503 if reasons else 200, json.dumps(body).encode())
                else:
                    self._answer(404, b'{"status": "not found", "paths": ["/metrics", "/livez", "/readyz"]}')

            def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                # Who asked may have gone: a probe with a short time-out.
                with suppress(ConnectionError):
                    self.end_headers()
                    self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                """Scrapes are not logged."""

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="status", daemon=True)
        self._thread.start()

    def close(self, deadline: Deadline) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=deadline.remaining_s)
