"""Where keys are looked up: Postgres holds them, Valkey remembers what Postgres said. Blocking calls."""

from __future__ import annotations

import hmac
import uuid
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry
from sqlalchemy import func, or_, select, text, update

from runtime.database import Database
from runtime.errors import Unavailable
from runtime.tables import api_keys, customers
from schemas.tiers import UNLIMITED, CustomerLimits, limits_of

_CACHE_PREFIX = "vlastream:key:"
_BY_ID = "id:"
_CACHE_TIMEOUT_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """What is known of one key. Never the key itself."""

    key_hash: str
    key_id: str
    customer_id: str
    tier: str
    scopes: tuple[str, ...]
    is_active: bool
    customer_active: bool
    #: Unix epoch. None: never.
    expires_at_s: float | None
    #: Requests a minute of this key alone; None: only the customer's limits hold.
    rate_limit: int | None = None
    #: What the customer may use: their own numbers, else their tier's.
    limits: CustomerLimits = UNLIMITED

    @property
    def actor(self) -> str:
        """Who acts, as records name it."""
        return f"key {self.key_id} of {self.customer_id}"


def reference_of_id(key_id: str) -> str:
    """How a key is asked for by its id: for tokens, which do not hold the key."""
    return _BY_ID + key_id


class KeyCache(Protocol):
    """Raises Unavailable while it is away. reference: the key's hash, or `reference_of_id`."""

    def get(self, reference: str) -> tuple[KeyRecord, float] | None:
        """The record and when it was written, Unix epoch in seconds."""
        ...

    def put(self, reference: str, record: KeyRecord, at_s: float, *, keep_s: float) -> None: ...


class KeyTable(Protocol):
    """Raises Unavailable while it is away."""

    def find(self, reference: str) -> KeyRecord | None: ...


class ValkeyKeys:
    """What stands there is signed: whoever can write to Valkey cannot make a key, nor give one more rights."""

    def __init__(self, client: redis.Redis, secret: str) -> None:
        self._client = client
        self._secret = secret.encode()

    @classmethod
    def at(cls, url: str, secret: str) -> ValkeyKeys:
        """Connects at first use; a server that is away costs half a second at most."""
        client = redis.Redis.from_url(
            url,
            socket_timeout=_CACHE_TIMEOUT_S,
            socket_connect_timeout=_CACHE_TIMEOUT_S,
            retry=RedisRetry(NoBackoff(), 1),
        )
        return cls(client, secret)

    def ping(self) -> None:
        self._guarded(self._client.ping)

    def get(self, reference: str) -> tuple[KeyRecord, float] | None:
        raw = self._guarded(lambda: self._client.get(_CACHE_PREFIX + reference))
        if not isinstance(raw, bytes):
            return None
        signature, _, content = raw.partition(b" ")
        if not hmac.compare_digest(signature, self._signature(reference, content)):
            return None
        try:
            found = orjson.loads(content)
            record = found["record"]
            record |= {"scopes": tuple(record["scopes"]), "limits": CustomerLimits(**record["limits"])}
            return KeyRecord(**record), float(found["at_s"])
        except (ValueError, KeyError, TypeError):
            # Written by another version: as good as absent.
            return None

    def put(self, reference: str, record: KeyRecord, at_s: float, *, keep_s: float) -> None:
        content = orjson.dumps({"record": asdict(record), "at_s": at_s})
        value = self._signature(reference, content) + b" " + content
        self._guarded(lambda: self._client.set(_CACHE_PREFIX + reference, value, px=max(int(keep_s * 1000), 1)))

    def delete(self, reference: str) -> None:
        self._guarded(lambda: self._client.delete(_CACHE_PREFIX + reference))

    def close(self) -> None:
        self._client.close()

    def _signature(self, reference: str, content: bytes) -> bytes:
        # The reference belongs to it: a record must not be moved to another key's place.
        return hmac.digest(self._secret, reference.encode() + b" " + content, "sha256").hex().encode()

    def _guarded(self, call: Any) -> Any:
        try:
            return call()
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Valkey does not answer: {error}") from error


class PostgresKeys:
    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, reference: str) -> KeyRecord | None:
        try:
            by_id = uuid.UUID(reference.removeprefix(_BY_ID)) if reference.startswith(_BY_ID) else None
        except ValueError:
            return None
        which = api_keys.c.id == by_id if by_id is not None else api_keys.c.key_hash == reference
        query = (
            select(api_keys, customers.c.tier, customers.c.is_active.label("customer_active"), *_OWN_LIMITS)
            .join(customers, customers.c.id == api_keys.c.customer_id)
            .where(which)
        )
        with self._database.begin() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            # To the minute is enough, and saves a write a lookup.
            minute_ago = func.now() - text("interval '1 minute'")
            used_before = or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < minute_ago)
            used = update(api_keys).where(api_keys.c.id == row.id, used_before).values(last_used_at=func.now())
            connection.execute(used)
        return KeyRecord(
            key_hash=row.key_hash,
            key_id=str(row.id),
            customer_id=row.customer_id,
            tier=row.tier,
            scopes=tuple(row.scopes),
            is_active=row.is_active,
            customer_active=row.customer_active,
            expires_at_s=row.expires_at.timestamp() if row.expires_at is not None else None,
            rate_limit=row.rate_limit,
            limits=limits_of(row.tier, own_limits(row)),
        )


#: Limit of schemas/tiers.py -> the column that holds a customer's own.
LIMIT_COLUMNS = {
    "requests_per_minute": "rpm_limit",
    "requests_per_day": "rpd_limit",
    "monthly_quota": "monthly_quota",
    "max_robots": "max_robots",
    "max_payload_bytes": "max_payload_bytes",
}
_OWN_LIMITS = tuple(customers.c[column] for column in LIMIT_COLUMNS.values())


def own_limits(row: Any) -> dict[str, int | None]:
    """Of a row that has the customer's columns."""
    return {name: getattr(row, column) for name, column in LIMIT_COLUMNS.items()}
