"""Keyed hashes that stand for ids."""

from __future__ import annotations

import hashlib
import hmac

#: 128 bits: no two of a trillion ids collide.
HASH_CHARACTERS = 32


def hashed(identifier: str, salt: str) -> str:
    """HMAC-SHA256 of an id under the salt (RFC 2104), the first 32 lower-case hex digits.

    Keyed, so that whoever has the lake cannot try ids out; the same id has the same hash, so that rows join.
    """
    return hmac.new(salt.encode(), identifier.encode(), hashlib.sha256).hexdigest()[:HASH_CHARACTERS]
