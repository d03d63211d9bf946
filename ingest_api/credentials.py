"""How peers' clients carry a key: as a bearer, as openpi's `Api-Key`, or as the password in a URL."""

from __future__ import annotations

import base64


def as_bearer(authorization: str | None) -> str | None:
    """The header as KeyRing takes it: `Bearer KEY`. What is no key in another form is passed on as it is.

    `Api-Key KEY` is what openpi's client sends (openpi_client/websocket_client_policy.py); `Basic` is what clients
    without a header of their own make of `ws://any:KEY@host` (RFC 7617).
    """
    scheme, _, value = (authorization or "").partition(" ")
    match scheme.lower():
        case "api-key":
            return f"Bearer {value.strip()}"
        case "basic":
            try:
                text = base64.b64decode(value.strip(), validate=True).decode()
            except ValueError:
                return authorization
            user, _, password = text.partition(":")
            return f"Bearer {password or user}"
        case _:
            return authorization
