"""A cache that forgets to make room takes no limit with it, where limits have a server of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis
from pydantic import SecretStr

from ingest_api.upkeep import Upkeep
from runtime.limit_counter import LimitCounter
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.valkey import Valkey
from runtime.windows import minute_of
from schemas.topics import AUDIT
from tests.embedded import running
from tests.in_memory import InMemoryBroker
from tests.sink_process import wait_for
from tests.unit.api_stand_ins import absent_database

SUBJECT = "customer:c-1"


@contextmanager
def small_cache(folder: Path) -> Iterator[str]:
    """A cache with a limit of memory that forgets whatever was not used for longest."""
    layout = Layout(folder)
    layout.create()
    valkey = Valkey(layout)
    with running(valkey, layout):
        with redis.Redis.from_url(valkey.url) as client:
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 4 * 2**20)
            client.config_set("maxmemory-policy", "allkeys-lru")
        yield valkey.url


def press(url: str) -> None:
    """Far more than the cache holds."""
    with redis.Redis.from_url(url) as client:
        for number in range(400):
            client.set(f"vlastream:embedding:{number}", bytes(50_000))
        assert client.info("stats")["evicted_keys"] > 100


def grow_old(url: str) -> None:
    """Until what is there is older than whatever comes: the server knows ages in whole seconds, a moment late."""
    with redis.Redis.from_url(url) as client:
        second, _ = client.time()
        wait_for(lambda: client.time()[0] > second + 1)


def settings_for(cache: str, limits: str = "") -> Settings:
    return Settings(_env_file=None, redis_url=SecretStr(cache), rate_limit_redis_url=SecretStr(limits))


async def test_a_cache_under_pressure_resets_no_limit(tmp_path: Path, valkey_url: str) -> None:
    window = minute_of(time.time())
    subject = f"{SUBJECT}:{tmp_path}"
    with small_cache(tmp_path / "cache") as cache:
        counter = LimitCounter.of(settings_for(cache, valkey_url), Metrics())
        assert await counter.add(subject, window, 7) == 7
        press(cache)
        assert await counter.add(subject, window) == 8
        assert await counter.evicting_policy() == ""
        await counter.close()


async def test_where_cache_and_limits_are_one_server_its_owner_is_warned(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    window = minute_of(time.time())
    with small_cache(tmp_path / "cache") as cache:
        counter = LimitCounter.of(settings_for(cache), Metrics())
        assert await counter.add(SUBJECT, window, 7) == 7
        grow_old(cache)
        press(cache)
        # This is what the warning is about.
        assert await counter.add(SUBJECT, window) == 1
        upkeep = Upkeep(absent_database(), InMemoryBroker({AUDIT: 1}).publisher(), counter)
        for _ in range(2):
            await upkeep._watch_policy()  # noqa: SLF001 - what its task does every half minute
        warnings = [record for record in caplog.records if "RATE_LIMIT_REDIS_URL" in record.getMessage()]
        assert len(warnings) == 1
        assert "allkeys-lru" in warnings[0].getMessage()
        await upkeep.close()
