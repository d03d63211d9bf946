"""Whose a bearer key or token is: recognised in memory, in Valkey or in Postgres, in that order."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from starlette.requests import HTTPConnection

from ingest_api.access import declared_scopes
from ingest_api.key_stores import KeyCache, KeyRecord, KeyTable, reference_of_id
from ingest_api.key_watch import KeyWatch
from ingest_api.problems import Problem
from ingest_api.tokens import Claims, Tokens
from runtime.errors import Unavailable
from runtime.metrics import Metrics
from schemas.codes import Code
from schemas.scopes import Scope

log = logging.getLogger(__name__)

KEY_PATTERN = re.compile(r"vla_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{20,64}")
#: Time that a request with a key that is known already waits for its refresh.
_REFRESH_PATIENCE_S = 0.25
#: Pause after a failed lookup, in which known keys are honoured and unknown ones refused without trying again.
_PAUSE_S = 1.0
#: A key that nobody knows is not looked up again for so long.
_NEGATIVE_TTL_S = 2.0
_MOST_KEYS = 10_000
_MOST_UNKNOWN = 1_000
#: Lookups at once; beyond it keys that are not known yet are answered 503.
_MOST_LOOKUPS = 256


def hash_key(key: str) -> str:
    """sha256 of the whole key, lower-case hex. Keys have 256 random bits: a slow hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class _Entry:
    """What is known of one hash. `as_of`: when a store said so. `check_at`: when to ask again. Both monotonic."""

    record: KeyRecord | None
    as_of: float
    check_at: float


class KeyRing:
    """Says whose a bearer key is. One per process, of its event loop; lookups run in threads of its own."""

    def __init__(
        self,
        *,
        cache: KeyCache,
        table: KeyTable,
        ttl_s: float,
        stale_s: float,
        metrics: Metrics,
        tokens: Tokens | None = None,
        watch: KeyWatch | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """tokens: reads those of POST /v1/auth/token. watch: is told what looks like an attack. None: there is none."""
        self._tokens = tokens
        self._watch = watch
        self._cache = cache
        self._table = table
        self._ttl_s = ttl_s
        self._stale_s = stale_s
        self._metrics = metrics
        self._clock = clock
        self._now = now
        self._known: OrderedDict[str, _Entry] = OrderedDict()
        self._unknown: OrderedDict[str, _Entry] = OrderedDict()
        self._lookups: dict[str, asyncio.Task[_Entry | None]] = {}
        self._away_until = float("-inf")
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="keys")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def of(self, connection: HTTPConnection, scope: Scope | None = None) -> KeyRecord:
        """The record of whoever makes this HTTP request or WebSocket. Raises as `authenticate` does.

        scope: None, the one that the route declares in its OpenAPI; a route that declares nothing lets nobody in.
        """
        if scope is None:
            declared = declared_scopes(getattr(connection.scope.get("route"), "openapi_extra", None))
            if declared is None:
                raise _forbidden("this route does not say which scope it takes")
            scope = Scope(declared[0]) if declared else None
        return await self.authenticate(connection.headers.get("authorization"), scope, origin=origin_of(connection))

    async def authenticate(
        self, authorization: str | None, scope: Scope | None = Scope.INFERENCE, *, origin: str = "unknown"
    ) -> KeyRecord:
        """The record of a key, or of a token made with it, in an Authorization header. Of a token: with its scopes.

        scope: None, any will do. origin: address of the client, for the audit log.
        Raises Problem: 401 without a valid key, 403 for one that may not do this, 503 for a key that is not known
        while it cannot be looked up.
        """
        return await self._counted(self._recognised(authorization, scope, origin), origin)

    async def of_claims(self, claims: Claims, scope: Scope | None, *, origin: str) -> KeyRecord:
        """The record of the key that a token of any audience names, with the token's scopes. Raises as above."""
        return await self._counted(self._holder(claims, scope, origin), origin)

    async def _counted(self, recognising: Awaitable[KeyRecord], origin: str) -> KeyRecord:
        try:
            record = await recognising
        except Problem as problem:
            if problem.code in (Code.UNAUTHENTICATED, Code.FORBIDDEN):
                self._metrics.key_refusals.labels(problem.code).inc()
            raise
        if self._watch is not None:
            self._watch.used(record, origin)
        return record

    async def _recognised(self, authorization: str | None, scope: Scope | None, origin: str) -> KeyRecord:
        scheme, _, text = (authorization or "").partition(" ")
        text = text.strip()
        if scheme.lower() != "bearer" or not text:
            raise _unauthenticated("send a key: `Authorization: Bearer vla_...`", error="")
        if KEY_PATTERN.fullmatch(text):
            digest = hash_key(text)
            record = await self._known_as(digest)
            if record is not None and hmac.compare_digest(record.key_hash, digest):
                return self._judged(record, record.scopes, scope, origin)
            self._say(KeyWatch.unknown, origin)
            raise _unauthenticated("nobody has this key: see `vlastream keys list`")
        claims = self._tokens.read(text) if self._tokens is not None else None
        if claims is None:
            raise _unauthenticated("this is neither a key of this service, which begins with vla_, nor a valid token")
        return await self._holder(claims, scope, origin)

    async def _holder(self, claims: Claims, scope: Scope | None, origin: str) -> KeyRecord:
        record = await self._known_as(reference_of_id(claims.key_id))
        if record is None:
            raise _unauthenticated("the key of this token is gone: ask for a new token with another key")
        # A token never may more than its key may now.
        return self._judged(record, tuple(s for s in claims.scopes if s in record.scopes), scope, origin)

    def _judged(self, record: KeyRecord, scopes: tuple[str, ...], scope: Scope | None, origin: str) -> KeyRecord:
        if not record.is_active:
            self._say(KeyWatch.revoked, record, origin)
            raise _unauthenticated("this key was revoked: ask for a new one")
        if record.expires_at_s is not None and self._now() >= record.expires_at_s:
            self._say(KeyWatch.expired, record, origin)
            raise _unauthenticated("this key has expired: ask for a new one")
        if not record.customer_active:
            raise _forbidden("this customer is not active")
        if scope is not None and scope not in scopes:
            raise _forbidden(f"this key or token lacks the scope {scope}")
        return record if scopes == record.scopes else replace(record, scopes=scopes)

    def _say(self, what: Callable[..., None], *about: object) -> None:
        if self._watch is not None:
            what(self._watch, *about)

    async def _known_as(self, reference: str) -> KeyRecord | None:
        entry = self._known.get(reference) or self._unknown.get(reference)
        if entry is not None and self._clock() < entry.check_at:
            self._metrics.key_lookups.labels("memory").inc()
        else:
            entry = await self._refreshed(reference, entry)
        return entry.record

    async def _refreshed(self, digest: str, entry: _Entry | None) -> _Entry:
        """The entry after a lookup, or the old one while lookups fail or take long."""
        usable = entry is not None and entry.record is not None and self._clock() - entry.as_of < self._stale_s
        if not usable and self._clock() < self._away_until:
            raise self._unavailable()
        lookup = self._lookups.get(digest)
        if lookup is None and len(self._lookups) >= _MOST_LOOKUPS:
            if usable and entry is not None:
                return entry
            raise self._unavailable()
        if lookup is None:
            lookup = asyncio.create_task(self._look_up(digest))
            self._lookups[digest] = lookup
            lookup.add_done_callback(lambda _: self._lookups.pop(digest, None))
        await asyncio.wait({lookup}, timeout=_REFRESH_PATIENCE_S if usable else None)
        found = lookup.result() if lookup.done() else None
        if found is not None:
            return found
        if usable and entry is not None:
            self._metrics.key_lookups.labels("stale").inc()
            # Asked again after a pause; how old its knowledge is stays as it was.
            self._known[digest] = _Entry(entry.record, entry.as_of, self._clock() + min(_PAUSE_S, self._ttl_s))
            return entry
        raise self._unavailable()

    def _unavailable(self) -> Problem:
        self._metrics.key_lookups.labels("unavailable").inc()
        return Problem(Code.UNAVAILABLE, "keys cannot be looked up now: try again", retry_after_s=2.0)

    async def _look_up(self, digest: str) -> _Entry | None:
        """Ask the stores and keep what they say. None: they are away."""
        loop = asyncio.get_running_loop()
        try:
            record, age_s, source = await loop.run_in_executor(self._threads, self._find, digest)
        except Unavailable as error:
            log.warning("a key could not be looked up: %s", error, extra={"action": "key_lookup"})
            self._away_until = self._clock() + _PAUSE_S
            return None
        self._away_until = float("-inf")
        self._metrics.key_lookups.labels(source).inc()
        at = self._clock()
        if record is None:
            self._known.pop(digest, None)
            entry = _Entry(None, at, at + min(self._ttl_s, _NEGATIVE_TTL_S))
            _keep(self._unknown, digest, entry, _MOST_UNKNOWN)
            return entry
        self._unknown.pop(digest, None)
        wait_s = self._ttl_s - age_s if age_s < self._ttl_s else min(_PAUSE_S, self._ttl_s)
        entry = _Entry(record, at - age_s, at + wait_s)
        _keep(self._known, digest, entry, _MOST_KEYS)
        return entry

    def _find(self, digest: str) -> tuple[KeyRecord | None, float, str]:
        """Record, age of that knowledge in seconds, and who said so. Blocks. Raises Unavailable."""
        cached, age_s = None, 0.0
        try:
            cached = self._cache.get(digest)
        except Unavailable as error:
            log.warning("key cache: %s", error, extra={"action": "key_lookup"})
        if cached is not None:
            record, written_at_s = cached
            age_s = max(self._now() - written_at_s, 0.0)
            if age_s < self._ttl_s:
                return record, age_s, "valkey"
        # A change may come between the table's answer and what is written here: knowledge is as old as its question.
        asked_at_s = self._now()
        try:
            found = self._table.find(digest)
        except Unavailable:
            if cached is not None and age_s < self._stale_s:
                return record, age_s, "valkey"
            raise
        if found is not None:
            try:
                self._cache.put(digest, found, asked_at_s, keep_s=max(self._stale_s, self._ttl_s))
            except Unavailable as error:
                log.warning("key cache: %s", error, extra={"action": "key_lookup"})
        return found, max(self._now() - asked_at_s, 0.0), "postgres"


def origin_of(connection: HTTPConnection) -> str:
    """Address of the client, as the server sees it: what proxies say is not believed."""
    return connection.client.host if connection.client is not None else "unknown"


def _keep(entries: OrderedDict[str, _Entry], digest: str, entry: _Entry, most: int) -> None:
    entries[digest] = entry
    entries.move_to_end(digest)
    while len(entries) > most:
        entries.popitem(last=False)


def _unauthenticated(detail: str, error: str = ', error="invalid_token"') -> Problem:
    return Problem(Code.UNAUTHENTICATED, detail, headers={"www-authenticate": f'Bearer realm="vlastream"{error}'})


def _forbidden(detail: str) -> Problem:
    challenge = 'Bearer realm="vlastream", error="insufficient_scope"'
    return Problem(Code.FORBIDDEN, detail, headers={"www-authenticate": challenge})
