"""API keys: made by an operator, kept as hashes, recognised in memory, in Valkey or in Postgres, in that order."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import secrets
import string
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from ingest_api.key_stores import KeyCache, KeyRecord, KeyTable, PostgresKeys, ValkeyKeys
from ingest_api.problems import Problem
from runtime.database import connect
from runtime.errors import Fatal, Unavailable
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.codes import Code
from schemas.ids import NAMESPACE

log = logging.getLogger(__name__)

KEY_PATTERN = re.compile(r"vla_[A-Za-z0-9]{8}_[A-Za-z0-9_-]{20,64}")
INFERENCE = "inference"
_PREFIX_CHARACTERS = string.ascii_lowercase + string.digits
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
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
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

    async def authenticate(self, authorization: str | None, scope: str = INFERENCE) -> KeyRecord:
        """The record of a key in an Authorization header.

        Raises Problem: 401 without a valid key, 403 for one that may not do this, 503 for a key that is not known
        while it cannot be looked up.
        """
        scheme, _, key = (authorization or "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise _unauthenticated("send a key: `Authorization: Bearer vla_...`", error="")
        if not KEY_PATTERN.fullmatch(key):
            raise _unauthenticated("this is not a key of this service: keys begin with vla_")
        digest = hash_key(key)
        entry = self._known.get(digest) or self._unknown.get(digest)
        if entry is not None and self._clock() < entry.check_at:
            self._metrics.key_lookups.labels("memory").inc()
        else:
            entry = await self._refreshed(digest, entry)
        return self._judged(digest, entry.record, scope)

    def _judged(self, digest: str, record: KeyRecord | None, scope: str) -> KeyRecord:
        if record is None or not hmac.compare_digest(record.key_hash, digest):
            raise _unauthenticated("nobody has this key: see `vlastream keys list`")
        if not record.is_active:
            raise _unauthenticated("this key was revoked: ask for a new one")
        if record.expires_at_s is not None and self._now() >= record.expires_at_s:
            raise _unauthenticated("this key has expired: ask for a new one")
        if not record.customer_active:
            raise _forbidden("this customer is not active")
        if scope not in record.scopes:
            raise _forbidden(f"this key lacks the scope {scope}")
        return record

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
        try:
            found = self._table.find(digest)
        except Unavailable:
            if cached is not None and age_s < self._stale_s:
                return record, age_s, "valkey"
            raise
        if found is not None:
            try:
                self._cache.put(found, self._now(), keep_s=max(self._stale_s, self._ttl_s))
            except Unavailable as error:
                log.warning("key cache: %s", error, extra={"action": "key_lookup"})
        return found, 0.0, "postgres"


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


# --- for operators: `vlastream keys ...`


def customer_id_of(email: str) -> str:
    """One address is one customer, however it is capitalised. Raises Fatal for what is no address."""
    address = _normalised(email)
    return str(uuid.uuid5(NAMESPACE, f"customer\x1f{address}"))


def create_key(settings: Settings, email: str, tier: str) -> str:
    """A new key for the customer with this address, who is made at their first key; `tier` is theirs from now on.

    Returns the key, which is kept nowhere. Raises Fatal for a bad address, Unavailable while Postgres is away.
    """
    address = _normalised(email)
    prefix = "".join(secrets.choice(_PREFIX_CHARACTERS) for _ in range(8))
    key = f"vla_{prefix}_{secrets.token_urlsafe(32)}"
    with _postgres_keys(settings) as table:
        table.add(
            customer_id=customer_id_of(address),
            email=address,
            tier=tier,
            prefix=f"vla_{prefix}",
            key_hash=hash_key(key),
        )
    return key


def list_keys(settings: Settings) -> list[str]:
    """A heading and one line a key, newest first. Raises Unavailable while Postgres is away."""
    with _postgres_keys(settings) as table:
        rows = table.all()
    lines = [f"{'PREFIX':<13} {'STATE':<8} {'TIER':<11} {'CREATED':<17} {'LAST USED':<17} EMAIL"]
    for row in rows:
        expired = row.expires_at is not None and row.expires_at <= datetime.now(UTC)
        state = "revoked" if not row.is_active else "expired" if expired else "active"
        created, used = _minute(row.created_at), _minute(row.last_used_at)
        lines.append(f"{row.prefix:<13} {state:<8} {row.tier:<11} {created:<17} {used:<17} {row.email}")
    return lines


def revoke_key(settings: Settings, prefix: str) -> bool:
    """Revoke every active key with this prefix, `vla_` or not before it. False where there is none.

    API processes forget it after key_cache_ttl_s. Raises Unavailable while Postgres is away.
    """
    full = prefix if prefix.startswith("vla_") else f"vla_{prefix}"
    with _postgres_keys(settings) as table:
        revoked = table.revoke(full)
    cache = ValkeyKeys.at(settings.redis_url.get_secret_value())
    try:
        for key_hash in revoked:
            cache.delete(key_hash)
    except Unavailable as error:
        # What stands there is asked again at Postgres once it is older than key_cache_ttl_s.
        log.warning("the cache keeps the key for some seconds: %s", error, extra={"action": "revoke"})
    finally:
        cache.close()
    return bool(revoked)


def _postgres_keys(settings: Settings) -> PostgresKeys:
    return PostgresKeys(connect(settings, "vlastream-keys", pool_size=1))


def _normalised(email: str) -> str:
    address = email.strip().lower()
    if not re.fullmatch(r"[^@\s]{1,64}@[^@\s]{1,189}", address) or not address.isprintable():
        raise Fatal(f"{email[:80]!r} is not an e-mail address")
    return address


def _minute(moment: datetime | None) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M") if moment is not None else "never"
