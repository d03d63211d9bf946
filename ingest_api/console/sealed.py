"""What the page after a form has to show, in its address: sealed, so that no stranger's link makes a page say things.

Nothing is kept for it: the page can be loaded again as long as the session lasts.
"""

from __future__ import annotations

import base64
import hmac
import zlib
from typing import Any

import orjson

from ingest_api.console.session import Viewer

_SEAL_BYTES = 16


def sealed(viewer: Viewer, content: Any) -> str:
    """As a value of an address's query. content: what JSON can say; only this session opens it again."""
    packed = zlib.compress(orjson.dumps(content), 9)
    return base64.urlsafe_b64encode(_seal(viewer, packed) + packed).rstrip(b"=").decode()


def opened(viewer: Viewer, text: str) -> Any | None:
    """The content; None for what this session did not seal."""
    try:
        raw = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), b"-_", validate=True)
    except ValueError:
        return None
    seal, packed = raw[:_SEAL_BYTES], raw[_SEAL_BYTES:]
    return orjson.loads(zlib.decompress(packed)) if hmac.compare_digest(seal, _seal(viewer, packed)) else None


def _seal(viewer: Viewer, packed: bytes) -> bytes:
    return hmac.digest(viewer.csrf.encode(), b"console page\0" + packed, "sha256")[:_SEAL_BYTES]
