"""Vectors by content, in Redis: a hit computes nothing. A server that is away costs the hits and nothing else."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from redis import Redis, RedisError

log = logging.getLogger(__name__)

#: Every key of the cache begins so, then comes the customer: what an erasure looks for.
PREFIX = "vla:embedding:"
_TIMEOUT_S = 0.25
#: After a failure the server is left alone for so long.
_PAUSE_S = 5.0


def cache_key(customer_id: str, model: str, content: bytes) -> str:
    """`vla:embedding:<customer>:<model>:<sha256 of the content>`: entries of a customer are its own, and are found."""
    return f"{PREFIX}{customer_id}:{model}:{hashlib.sha256(content).hexdigest()}"


class Cache(Protocol):
    def get(self, keys: Sequence[str]) -> list[NDArray[np.float32] | None]: ...
    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None: ...


class NoCache:
    """Of EMBEDDING_CACHE_TTL=0."""

    def get(self, keys: Sequence[str]) -> list[NDArray[np.float32] | None]:
        return [None] * len(keys)

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        pass


class RedisCache:
    """ttl_s: how long a vector stays. Never raises."""

    def __init__(self, client: Redis, ttl_s: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._ttl_s = ttl_s
        self._clock = clock
        self._away_until_s = float("-inf")

    @staticmethod
    def at(url: str, ttl_s: int) -> RedisCache:
        client = Redis.from_url(url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S)
        return RedisCache(client, ttl_s)

    def get(self, keys: Sequence[str]) -> list[NDArray[np.float32] | None]:
        if not keys or self._clock() < self._away_until_s:
            return [None] * len(keys)
        try:
            found: Any = self._client.mget(list(keys))
        except (RedisError, OSError) as error:
            self._leave_alone(error)
            return [None] * len(keys)
        return [np.frombuffer(value, np.float32) if value is not None else None for value in found]

    def put(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        if not vectors or self._clock() < self._away_until_s:
            return
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                for key, vector in vectors.items():
                    pipeline.set(key, vector.astype(np.float32).tobytes(), ex=self._ttl_s)
                pipeline.execute()
        except (RedisError, OSError) as error:
            self._leave_alone(error)

    def _leave_alone(self, error: Exception) -> None:
        self._away_until_s = self._clock() + _PAUSE_S
        log.warning("no cache for %g s: %s", _PAUSE_S, error, extra={"action": "cache_away"})
