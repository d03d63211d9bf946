"""Counts what customers use now, in Valkey: one counter for all API processes and gates.

Valkey away costs limits, never inference: methods then say None, at once for some seconds, and a metric counts it.
A server that evicts keys forgets what was used, so counters want one that does not (RATE_LIMIT_REDIS_URL).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol, TypeVar, cast

from limits.aio.storage import RedisStorage
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.windows import Window

log = logging.getLogger(__name__)

T = TypeVar("T")

_PREFIX = "vlastream:limit"
#: A request waits no longer than this for its counter, in steps: where the event loop stalls, that is one of them.
_TIMEOUT_S = 1.0
_STEPS = 10
#: Pause after a failure, in which nothing is asked.
_PAUSE_S = 5.0
#: A counter outlives its window by so much, for records that a gate reads late. Of a month: its own length again.
_LATE_S = 3600
_MOST_CONNECTIONS = 32
#: maxmemory-policies under which a counter outlives every copy.
_KEEPING = frozenset({"noeviction", "volatile-ttl"})

#: A robot of today is let through; a new one only while there are fewer than the limit. One step, so that two processes
#: never let in two for the last place.
_ADMIT = """
if redis.call('sismember', KEYS[1], ARGV[1]) == 1 then return 1 end
if redis.call('scard', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('sadd', KEYS[1], ARGV[1])
redis.call('expire', KEYS[1], ARGV[3])
return 1
"""
_RAISE = """
if tonumber(redis.call('get', KEYS[1]) or '0') < tonumber(ARGV[1]) then
  redis.call('set', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
"""


class CounterPort(Protocol):
    """What limits need of the counter."""

    async def add(self, subject: str, window: Window, amount: int = 1) -> int | None: ...

    async def admit_robot(self, customer_id: str, robot_id: str, day: Window, limit: int) -> bool | None: ...

    async def close(self) -> None: ...


def counters_url(settings: Settings) -> str:
    """The server for what must not be forgotten before its time: that of the cache where no other is named."""
    return settings.rate_limit_redis_url.get_secret_value() or settings.redis_url.get_secret_value()


class LimitCounter:
    """Of one event loop. Close it on that loop."""

    def __init__(self, url: str, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics = metrics
        self._clock = clock
        self._away_until = float("-inf")
        options: dict[str, Any] = {
            # The client's own would take a stall of this loop for a server that does not answer: see `_answer`.
            "socket_timeout": None,
            "socket_connect_timeout": _TIMEOUT_S,
            "max_connections": _MOST_CONNECTIONS,
            "retry": Retry(NoBackoff(), 1),
        }
        self._storage = RedisStorage(f"async+{url}", implementation="redispy", key_prefix=_PREFIX, **options)
        # The one client of the storage, for what it has no method of its own for.
        self._client = cast(Any, self._storage.bridge).get_connection()
        self._admit = self._client.register_script(_ADMIT)
        self._raise = self._client.register_script(_RAISE)

    @classmethod
    def of(cls, settings: Settings, metrics: Metrics) -> LimitCounter:
        """Connects at first use."""
        return cls(counters_url(settings), metrics)

    async def add(self, subject: str, window: Window, amount: int = 1) -> int | None:
        """The count of a window with `amount` more in it."""
        return await self._asked(lambda: self._storage.incr(f"{subject}:{window.name}", kept_s(window), amount))

    async def admit_robot(self, customer_id: str, robot_id: str, day: Window, limit: int) -> bool | None:
        """Whether the robot is one of the `limit` that may come on this day; it is from now on."""
        key = f"{_PREFIX}:robots:{customer_id}:{day.name}"
        found = await self._asked(lambda: self._admit(keys=[key], args=[robot_id, limit, kept_s(day)]))
        return None if found is None else bool(found)

    async def raise_to(self, counts: Iterable[tuple[str, Window, int]]) -> None:
        """Let no counter (subject, window) stand below what the log says was used."""

        async def run() -> bool:
            async with self._client.pipeline(transaction=False) as pipeline:
                for subject, window, used in counts:
                    key = f"{_PREFIX}:{subject}:{window.name}"
                    await self._raise(keys=[key], args=[used, kept_s(window)], client=pipeline)
                await pipeline.execute()
            return True

        await self._asked(run)

    async def evicting_policy(self) -> str:
        """maxmemory-policy of the server where it may forget counters to make room; empty where it keeps them.

        `volatile-ttl` is taken for keeping them: whatever else is there ends sooner, and is forgotten first. So is a
        server that does not tell (CONFIG is forbidden on many hosted ones).
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                found = await self._client.config_get("maxmemory", "maxmemory-policy")
        except (RedisError, OSError, TimeoutError):
            return ""
        told = {_text(name): _text(value) for name, value in found.items()}
        policy = told.get("maxmemory-policy", "noeviction")
        return "" if policy in _KEEPING or told.get("maxmemory", "0") == "0" else policy

    async def close(self) -> None:
        await self._client.aclose()

    async def _asked(self, ask: Callable[[], Awaitable[T]]) -> T | None:
        if self._clock() < self._away_until:
            self._metrics.limits_unchecked.inc()
            return None
        try:
            return await _answer(ask)
        except (RedisError, OSError, TimeoutError) as error:
            self._away_until = self._clock() + _PAUSE_S
            self._metrics.limits_unchecked.inc()
            log.warning("limits are not checked: Valkey does not answer: %s", error, extra={"action": "limits_away"})
            return None


async def _answer(ask: Callable[[], Awaitable[T]]) -> T:
    """Raises TimeoutError where none has come in _TIMEOUT_S.

    After a stall of this loop the time may be up while the answer lies in the socket. The next step finds it there, so
    nothing is asked, and counted, twice.
    """
    asking = asyncio.ensure_future(ask())
    try:
        for _ in range(_STEPS):
            answered, _open = await asyncio.wait({asking}, timeout=_TIMEOUT_S / _STEPS)
            if answered:
                return asking.result()
        raise TimeoutError(f"no answer in {_TIMEOUT_S} s")
    finally:
        if asking.cancel():
            await asyncio.wait({asking})


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value


def kept_s(window: Window) -> int:
    """Seconds that the counter of a window lives: longer than any copy, which a full Valkey forgets first."""
    return window.length_s + max(window.length_s, _LATE_S)
