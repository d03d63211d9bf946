"""What must hold between settings, and what production refuses. Each fault is one line: the variable, what is wrong
with it, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from runtime.settings import Settings

#: Good enough to try things out; refused in production.
DEFAULT_SECRET = "change-me"
DEFAULT_DATABASE_URL = "postgresql://vlastream:vlastream@127.0.0.1:5432/vlastream"
#: RFC 7518, 3.2: a key of HS256 has at least as many bits as the hash.
_SHORTEST_JWT_KEY = 32
_MAKE_ONE = "make one with `openssl rand -hex 32`"


def general_faults(settings: Settings) -> Iterator[str]:
    """What no installation can work with."""
    least = 4 * settings.max_body_bytes
    if settings.inference_queue_max_bytes < least:
        yield f"INFERENCE_QUEUE_MAX_BYTES: use at least {least}, four times MAX_BODY_BYTES"
    jwt_key = settings.jwt_secret_key.get_secret_value()
    if 0 < len(jwt_key) < _SHORTEST_JWT_KEY:
        yield f"JWT_SECRET_KEY: it has {len(jwt_key)} characters, at least {_SHORTEST_JWT_KEY} are needed: {_MAKE_ONE}"
    for origin in settings.cors_origins:
        parts = urlsplit(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path):
            yield f"CORS_ORIGINS: {origin!r} is no origin: write it as https://host or https://host:port"


def production_faults(settings: Settings) -> Iterator[str]:
    """What is convenient on a developer's machine, and open to anybody elsewhere."""
    for name in ("secret_key", "anonymization_hash_salt"):
        if getattr(settings, name).get_secret_value() in (DEFAULT_SECRET, ""):
            yield f"{name.upper()}: it is the default, which everybody knows: {_MAKE_ONE}"
    if settings.database_url.get_secret_value() == DEFAULT_DATABASE_URL:
        yield "DATABASE_URL: it is the default with its well-known password: set that of your server"
    if settings.debug:
        yield "DEBUG: it logs more than production should keep: set DEBUG=false, or LOG_LEVEL=DEBUG for an hour"
    if "*" in settings.allowed_hosts:
        yield "ALLOWED_HOSTS: * answers to any name: list the names by which robots call this API"
    if "*" in settings.cors_origins:
        yield "CORS_ORIGINS: * lets any page call this API: list the origins of your own pages, or leave it empty"
    if settings.kafka_security_protocol != "SASL_SSL" and not settings.allow_plaintext_kafka:
        yield (
            f"KAFKA_SECURITY_PROTOCOL: {settings.kafka_security_protocol} is not encrypted or not authenticated: "
            "set it to SASL_SSL, or ALLOW_PLAINTEXT_KAFKA=true where nobody else is in that network"
        )
