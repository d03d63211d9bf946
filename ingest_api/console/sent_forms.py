"""Forms whose answer cannot be shown by a second page: each copy of such a form acts once.

A new key is shown by the answer that made it, so reloading that answer sends its form again. Every copy of the form has
a number of its own; Valkey keeps the numbers that came, for all API processes, as long as a form's session may last.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
from collections.abc import Mapping
from typing import Protocol

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ingest_api.console.session import SESSION_S, Viewer
from ingest_api.problems import Problem, fault
from runtime.errors import Unavailable
from runtime.limit_counter import counters_url
from runtime.settings import Settings
from schemas.codes import Code

ONCE_FIELD = "once"
_NUMBER = re.compile("[0-9a-f]{32}", re.ASCII)
_PREFIX = "vlastream:form:"
_TIMEOUT_S = 1.0
_AWAY = (
    "Valkey does not answer, so nobody can tell whether this form was sent before, and nothing was done: send it again "
    "in a moment, or use `vlastream keys` or `vlastream dlq`, which do without"
)


class SentForms(Protocol):
    def is_first(self, form: str) -> bool:
        """Whether this form comes for the first time; from now on it has come. Blocks; raises Unavailable."""
        ...


class ValkeyForms:
    """SentForms on the server that holds the limits' counters: it forgets nothing before its time."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @classmethod
    def of(cls, settings: Settings) -> ValkeyForms:
        """Connects at first use."""
        # One more try: a connection from before the server's restart is dead.
        retry = Retry(NoBackoff(), 1)
        timeouts = {"socket_timeout": _TIMEOUT_S, "socket_connect_timeout": _TIMEOUT_S}
        return cls(redis.Redis.from_url(counters_url(settings), **timeouts, retry=retry))

    def is_first(self, form: str) -> bool:
        mine = secrets.token_bytes(16)
        try:
            held = self._client.set(_PREFIX + form, mine, nx=True, get=True, ex=SESSION_S)
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Valkey does not answer: {error}") from error
        # What is there may be our own word, whose answer was lost.
        return held is None or held == mine

    def close(self) -> None:
        self._client.close()


def new_number() -> str:
    """For one copy of a form."""
    return secrets.token_hex(16)


async def comes_first(sent_forms: SentForms, viewer: Viewer, form: Mapping[str, str]) -> bool:
    """Whether this copy of a form comes for the first time in this session. Raises Problem 400 or 503."""
    number = form.get(ONCE_FIELD, "")
    if not _NUMBER.fullmatch(number):
        detail = "this form has no number: open the page again, then send it"
        raise Problem(Code.MALFORMED, detail, violations=[fault(ONCE_FIELD, "missing", detail)])
    # Another session's form with the same number is another form.
    name = hashlib.sha256(f"{viewer.csrf} {number}".encode()).hexdigest()
    try:
        return await asyncio.to_thread(sent_forms.is_first, name)
    except Unavailable as error:
        raise Problem(Code.UNAVAILABLE, _AWAY) from error
