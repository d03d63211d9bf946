"""Short-lived tokens for browsers and WebSockets: a JWT (RFC 7519) that stands for a key, with some of its scopes.

HS256 and nothing else (RFC 8725, 3.1). A token names its key; whether that key still holds is asked as for the key
itself, so a token ends with its key, within the same seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import jwt

from schemas.scopes import TOKEN_SCOPES, Scope

_ALGORITHM = "HS256"
_ISSUER = "vlastream"
#: Of the tokens that the REST routes and the WebSocket take.
API_AUDIENCE = "vlastream-api"
LONGEST_S = 3600
#: A token that is longer was not made here.
_LONGEST_TOKEN = 2048


@dataclass(frozen=True, slots=True)
class Claims:
    key_id: str
    scopes: tuple[str, ...]


class Tokens:
    """Makes and reads tokens of one audience; what was made for another one is no token here.

    secret: at least 32 characters. scopes: those that a token of this audience may carry.
    """

    def __init__(
        self,
        secret: str,
        now: Callable[[], float] = time.time,
        *,
        audience: str = API_AUDIENCE,
        scopes: tuple[Scope, ...] = TOKEN_SCOPES,
    ) -> None:
        self._secret = secret
        self._now = now
        self._audience = audience
        self._scopes = scopes

    def issue(self, key_id: str, customer_id: str, scopes: tuple[Scope, ...], ttl_s: int) -> tuple[str, int]:
        """A token, and when it ends (Unix epoch, seconds). scopes: of those given; ttl_s: at most LONGEST_S."""
        if not 0 < ttl_s <= LONGEST_S or not set(scopes) <= set(self._scopes):
            raise ValueError("a token of this kind is never given")
        now_s = int(self._now())
        payload = {
            "iss": _ISSUER,
            "aud": self._audience,
            "sub": customer_id,
            "key": key_id,
            "scope": " ".join(scopes),
            "iat": now_s,
            "nbf": now_s,
            "exp": now_s + ttl_s,
        }
        return jwt.encode(payload, self._secret, algorithm=_ALGORITHM), now_s + ttl_s

    def read(self, token: str) -> Claims | None:
        """What a valid token says; None for any other text."""
        if len(token) > _LONGEST_TOKEN:
            return None
        try:
            claims = jwt.decode(
                token,
                self._secret,
                algorithms=[_ALGORITHM],
                audience=self._audience,
                issuer=_ISSUER,
                # Times are judged by our own clock below.
                options={
                    "require": ["exp", "iat", "aud", "iss", "sub"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
            key_id, scope = claims["key"], claims["scope"]
            begins_s, ends_s = float(claims["iat"]), float(claims["exp"])
        except (jwt.PyJWTError, KeyError, TypeError, ValueError):
            return None
        now_s = self._now()
        # Two API processes may differ by a little; a life beyond an hour was never given.
        timely = begins_s - 60 <= now_s < ends_s and ends_s - begins_s <= LONGEST_S
        if not timely or not isinstance(key_id, str) or not isinstance(scope, str):
            return None
        return Claims(key_id, tuple(word for word in scope.split() if word in set(self._scopes)))
