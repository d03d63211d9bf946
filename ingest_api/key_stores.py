"""Where keys are looked up: Postgres holds them, Valkey remembers what Postgres said. Blocking calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import orjson
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry as RedisRetry
from sqlalchemy import Row, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert

from runtime.database import Database
from runtime.errors import Unavailable
from runtime.tables import api_keys, customers

_CACHE_PREFIX = "vlastream:key:"
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


class KeyCache(Protocol):
    """Raises Unavailable while it is away."""

    def get(self, key_hash: str) -> tuple[KeyRecord, float] | None:
        """The record and when it was written, Unix epoch in seconds."""
        ...

    def put(self, record: KeyRecord, at_s: float, *, keep_s: float) -> None: ...


class KeyTable(Protocol):
    """Raises Unavailable while it is away."""

    def find(self, key_hash: str) -> KeyRecord | None: ...


class ValkeyKeys:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    @classmethod
    def at(cls, url: str) -> ValkeyKeys:
        """Connects at first use; a server that is away costs half a second at most."""
        client = redis.Redis.from_url(
            url,
            socket_timeout=_CACHE_TIMEOUT_S,
            socket_connect_timeout=_CACHE_TIMEOUT_S,
            retry=RedisRetry(NoBackoff(), 1),
        )
        return cls(client)

    def ping(self) -> None:
        self._guarded(self._client.ping)

    def get(self, key_hash: str) -> tuple[KeyRecord, float] | None:
        raw = self._guarded(lambda: self._client.get(_CACHE_PREFIX + key_hash))
        if not isinstance(raw, bytes):
            return None
        try:
            content = orjson.loads(raw)
            record = KeyRecord(**{**content["record"], "scopes": tuple(content["record"]["scopes"])})
            return record, float(content["at_s"])
        except (ValueError, KeyError, TypeError):
            # Written by another version: as good as absent.
            return None

    def put(self, record: KeyRecord, at_s: float, *, keep_s: float) -> None:
        value = orjson.dumps({"record": asdict(record), "at_s": at_s})
        self._guarded(lambda: self._client.set(_CACHE_PREFIX + record.key_hash, value, px=max(int(keep_s * 1000), 1)))

    def delete(self, key_hash: str) -> None:
        self._guarded(lambda: self._client.delete(_CACHE_PREFIX + key_hash))

    def close(self) -> None:
        self._client.close()

    def _guarded(self, call: Any) -> Any:
        try:
            return call()
        except (redis.RedisError, OSError) as error:
            raise Unavailable(f"Valkey does not answer: {error}") from error


class PostgresKeys:
    """Owns the pool that it is given. Use as `with`, or close it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._database.close()

    def find(self, key_hash: str) -> KeyRecord | None:
        query = (
            select(
                api_keys.c.id,
                api_keys.c.key_hash,
                api_keys.c.customer_id,
                api_keys.c.scopes,
                api_keys.c.is_active,
                api_keys.c.expires_at,
                customers.c.tier,
                customers.c.is_active.label("customer_active"),
            )
            .join(customers, customers.c.id == api_keys.c.customer_id)
            .where(api_keys.c.key_hash == key_hash)
        )
        with self._database.begin() as connection:
            row = connection.execute(query).one_or_none()
            if row is None:
                return None
            # To the minute is enough, and saves a write a lookup.
            connection.execute(
                update(api_keys)
                .where(api_keys.c.id == row.id)
                .where(
                    or_(
                        api_keys.c.last_used_at.is_(None),
                        api_keys.c.last_used_at < func.now() - text("interval '1 minute'"),
                    )
                )
                .values(last_used_at=func.now())
            )
        return KeyRecord(
            key_hash=row.key_hash,
            key_id=str(row.id),
            customer_id=row.customer_id,
            tier=row.tier,
            scopes=tuple(row.scopes),
            is_active=row.is_active,
            customer_active=row.customer_active,
            expires_at_s=row.expires_at.timestamp() if row.expires_at is not None else None,
        )

    def add(self, *, customer_id: str, email: str, tier: str, prefix: str, key_hash: str) -> None:
        customer = insert(customers).values(id=customer_id, email=email, tier=tier)
        with self._database.begin() as connection:
            connection.execute(customer.on_conflict_do_update(index_elements=["id"], set_={"tier": tier}))
            connection.execute(insert(api_keys).values(customer_id=customer_id, prefix=prefix, key_hash=key_hash))

    def all(self) -> Sequence[Row[Any]]:
        query = (
            select(api_keys, customers.c.email, customers.c.tier)
            .join(customers, customers.c.id == api_keys.c.customer_id)
            .order_by(api_keys.c.created_at.desc())
        )
        with self._database.begin() as connection:
            return connection.execute(query).all()

    def revoke(self, prefix: str) -> list[str]:
        """Hashes of the keys that this revoked."""
        statement = (
            update(api_keys)
            .where(api_keys.c.prefix == prefix, api_keys.c.is_active)
            .values(is_active=False)
            .returning(api_keys.c.key_hash)
        )
        with self._database.begin() as connection:
            return list(connection.execute(statement).scalars())
