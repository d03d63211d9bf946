"""Does what customers asked to be erased: Postgres, the embedder's cache, the lake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from redis import Redis
from sqlalchemy import select, update

from runtime.data_tables import erasures
from runtime.database import Database
from sinks.erase_postgres import erase_from_postgres
from sinks.erasure import erase_from_lake
from sinks.storage import Storage

log = logging.getLogger(__name__)

#: By then every sink and embedder has read the record of the erasure, and writes nothing of the customer any more.
SETTLED_AFTER = timedelta(seconds=5)
#: What the embedder's keys begin with, before the customer (gpu_consumers/embedder/cache.py).
_CACHE_PREFIX = "vla:embedding:"


class Erasures:
    """salt: of the hashes that stand for ids. `redis` gives a client of the embedder's cache."""

    def __init__(
        self,
        database: Database,
        storage: Storage,
        redis: Redis,
        salt: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._storage = storage
        self._redis = redis
        self._salt = salt
        self._now = now

    def run(self) -> int:
        """Do all that is pending and settled; how many. Raises Unavailable: then it is done again from the start."""
        pending = select(erasures).where(
            erasures.c.state == "pending", erasures.c.requested_at <= self._now() - SETTLED_AFTER
        )
        with self._database.begin() as connection:
            rows = connection.execute(pending).all()
        for row in rows:
            self._erase(row.customer_id, row.erased_before, row.removed or {})
        return len(rows)

    def _erase(self, customer_id: str, before: datetime, earlier: dict[str, Any]) -> None:
        before_ms = round(before.timestamp() * 1000)
        lake = erase_from_lake(self._storage, customer_id, before_ms, self._salt)
        cache = self._forget_vectors(customer_id)
        with self._database.begin() as connection:
            postgres = erase_from_postgres(connection, customer_id, before, self._salt)
            # Rows and the word that they are gone, in one transaction. A second erasure may have been asked for since.
            done = update(erasures).where(erasures.c.customer_id == customer_id, erasures.c.erased_before == before)
            removed = {"postgres": postgres, "lake": lake, "redis": cache}
            connection.execute(done.values(state="done", removed=_added(earlier, removed), finished_at=self._now()))
        log.warning(
            "erased %s: %s", customer_id, removed, extra={"action": "erased", "reason": "asked for by its owner"}
        )

    def _forget_vectors(self, customer_id: str) -> int:
        found = list(self._redis.scan_iter(match=f"{_CACHE_PREFIX}{_escaped(customer_id)}:*", count=1000))
        return int(self._redis.delete(*found)) if found else 0


def _added(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Counts of both, name by name."""
    both: dict[str, Any] = {}
    for name in {**first, **second}:
        one, other = first.get(name, 0), second.get(name, 0)
        both[name] = _added(one or {}, other or {}) if isinstance(one, dict) or isinstance(other, dict) else one + other
    return both


def _escaped(text: str) -> str:
    """For a glob pattern of Redis."""
    return "".join(f"\\{character}" if character in "*?[]^\\" else character for character in text)
