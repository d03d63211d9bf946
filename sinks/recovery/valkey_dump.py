"""Valkey's keys with their time to live, in a file of one JSON line each. Values are as DUMP gives them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis

from runtime.errors import Unavailable
from runtime.settings import Settings

_TIMEOUT_S = 5.0
_SCAN = 500


def dump(settings: Settings, file: Path) -> int:
    """Write every key; returns their number. Raises Unavailable."""
    count = 0
    with _connected(settings) as client, file.open("w") as output:
        for key in client.scan_iter(count=_SCAN):
            value, ttl_ms = client.dump(key), client.pttl(key)
            # Gone since it was listed.
            if value is None or ttl_ms == -2:
                continue
            expires_ms = round(time.time() * 1000) + ttl_ms if ttl_ms >= 0 else 0
            line = {"key": _text(key), "value": _text(value), "expires_at_ms": expires_ms}
            output.write(json.dumps(line) + "\n")
            count += 1
    return count


def restore(settings: Settings, file: Path) -> int:
    """Bring back the keys that have not expired since; others of today stay. Returns their number."""
    count = 0
    with _connected(settings) as client, file.open() as lines:
        for line in map(json.loads, lines):
            expires_ms = line["expires_at_ms"]
            if 0 < expires_ms <= time.time() * 1000:
                continue
            client.restore(
                base64.b64decode(line["key"]),
                expires_ms,
                base64.b64decode(line["value"]),
                replace=True,
                absttl=expires_ms > 0,
            )
            count += 1
    return count


@contextmanager
def _connected(settings: Settings) -> Iterator[redis.Redis]:
    url = settings.redis_url.get_secret_value()
    try:
        with redis.Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S) as client:
            yield client
    except redis.RedisError as error:
        raise Unavailable(f"Valkey does not answer: {error}") from error


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
