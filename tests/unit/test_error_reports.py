"""What goes to Sentry: errors, and nothing that belongs to a customer."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import brotli  # type: ignore[import-untyped] # has no stubs

ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = """
import logging, sys
from pydantic import SecretStr
from runtime.error_reports import configure_error_reports
from runtime.settings import Settings
configure_error_reports(Settings(_env_file=None, sentry_dsn=SecretStr(sys.argv[1])), "api")
def handle(api_key):
    raise ValueError("the handler broke")
try:
    handle("vla_secret_key")
except ValueError:
    logging.getLogger("ingest_api").warning("only a warning")
    logging.getLogger("ingest_api").exception("request failed", extra={"request_id": "r-1"})
"""


def test_an_error_is_reported_with_its_stack_and_without_what_the_functions_were_called_with() -> None:
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            bodies.append(_plain(body, self.headers["Content-Encoding"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Not logged."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        dsn = f"http://key@127.0.0.1:{server.server_address[1]}/1"
        subprocess.run([sys.executable, "-c", _PROGRAM, dsn], check=True, cwd=ROOT, capture_output=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    sent = b"".join(bodies).decode()
    assert "the handler broke" in sent
    assert "api-0" in sent
    assert "only a warning" not in sent
    assert "vla_secret_key" not in sent


def _plain(body: bytes, encoding: str | None) -> bytes:
    match encoding:
        case "gzip":
            return gzip.decompress(body)
        case "br":
            plain: bytes = brotli.decompress(body)
            return plain
        case _:
            return body
