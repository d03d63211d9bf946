"""What must hold between settings, and what production refuses. Each fault is one line: the variable, what is wrong
with it, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

if TYPE_CHECKING:
    from runtime.settings import Settings

#: Good enough to try things out; refused in production.
DEFAULT_SECRET = "change-me"
DEFAULT_DATABASE_URL = "postgresql://vlastream:vlastream@127.0.0.1:5432/vlastream"
#: RFC 7518, 3.2: a key of HS256 has at least as many bits as the hash.
_SHORTEST_JWT_KEY = 32
#: A signing key or a salt that can be guessed is none.
_SHORTEST_SECRET = 16
#: What compose and the manifests give to roles that have no business with a secret.
_UNUSED = "unused"
_HOST_NAME = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*", re.IGNORECASE)
_MAKE_ONE = "make one with `openssl rand -hex 32`"


def general_faults(settings: Settings) -> Iterator[str]:
    """What no installation can work with."""
    least = 4 * settings.max_body_bytes
    if settings.inference_queue_max_bytes < least:
        yield f"INFERENCE_QUEUE_MAX_BYTES: use at least {least}, four times MAX_BODY_BYTES"
    jwt_key = settings.jwt_secret_key.get_secret_value()
    if 0 < len(jwt_key) < _SHORTEST_JWT_KEY:
        yield f"JWT_SECRET_KEY: it has {len(jwt_key)} characters, at least {_SHORTEST_JWT_KEY} are needed: {_MAKE_ONE}"
    if settings.default_ttl_ms > settings.max_ttl_ms:
        yield f"DEFAULT_TTL_MS: {settings.default_ttl_ms} is more than MAX_TTL_MS, {settings.max_ttl_ms}: lower it"
    yield from _address_faults(settings)
    yield from _caller_faults(settings)


def _address_faults(settings: Settings) -> Iterator[str]:
    """Addresses that no client could use. They are not repeated: most hold a password."""
    if not settings.kafka_bootstrap_servers.strip() or "://" in settings.kafka_bootstrap_servers:
        yield "KAFKA_BOOTSTRAP_SERVERS: write host:port, several of them comma separated, without a scheme"
    postgres, redis, http = ("postgresql", "postgres"), ("redis", "rediss", "unix"), ("http", "https")
    for name, schemes, may_be_empty in (
        ("database_url", postgres, False),
        ("redis_url", redis, False),
        ("rate_limit_redis_url", redis, True),
        ("s3_endpoint", http, True),
        ("otel_exporter_otlp_endpoint", http, True),
    ):
        value = getattr(settings, name)
        text = value if isinstance(value, str) else value.get_secret_value()
        if not (may_be_empty and not text) and _split(text).scheme not in schemes:
            yield f"{name.upper()}: it is no address of this kind: it begins with {schemes[0]}://"
    if settings.enable_s3_storage and not settings.s3_bucket:
        yield "S3_BUCKET: it is empty: name the bucket of the lake, or set ENABLE_S3_STORAGE=false"
    for target in settings.federate_targets:
        role, _, url = target.partition("=")
        if not role or _split(url).scheme not in http:
            yield f"FEDERATE_TARGETS: {target!r} is no role=url, as gate=http://host:port/metrics"


def _caller_faults(settings: Settings) -> Iterator[str]:
    """Names and origins that no caller could ever have."""
    if not settings.allowed_hosts:
        yield "ALLOWED_HOSTS: it is empty, so the API would answer nobody: list the names by which robots call it"
    for host in settings.allowed_hosts:
        if not _HOST_NAME.fullmatch(host) and not _is_address(host):
            yield f"ALLOWED_HOSTS: {host!r} is no host name: write it without scheme, port and path"
    for origin in settings.cors_origins:
        parts = _split(origin)
        if origin != "*" and (parts.scheme not in ("http", "https") or not parts.netloc or parts.path):
            yield f"CORS_ORIGINS: {origin!r} is no origin: write it as https://host or https://host:port"


def _split(text: str) -> SplitResult:
    """The parts of a URL; none of what is no URL at all."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")


def _is_address(host: str) -> bool:
    try:
        return bool(ip_address(host))
    except ValueError:
        return False


def production_faults(settings: Settings) -> Iterator[str]:
    """What is convenient on a developer's machine, and open to anybody elsewhere."""
    for name in ("secret_key", "anonymization_hash_salt"):
        secret = getattr(settings, name).get_secret_value().strip()
        if secret in (DEFAULT_SECRET, ""):
            yield f"{name.upper()}: it is the default, which everybody knows: {_MAKE_ONE}"
        elif len(secret) < _SHORTEST_SECRET and secret != _UNUSED:
            yield f"{name.upper()}: it has less than {_SHORTEST_SECRET} characters, so it can be guessed: {_MAKE_ONE}"
    if _split(settings.database_url.get_secret_value()).password == _split(DEFAULT_DATABASE_URL).password:
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
