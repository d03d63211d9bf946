"""Keys in a real Postgres and a real Valkey: made, used, listed, revoked, and known while servers are away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pytest
from pydantic import SecretStr

from ingest_api.customer_admin import customer_id_of
from ingest_api.key_stores import PostgresKeys, ValkeyKeys
from ingest_api.keys import KeyRing, hash_key
from ingest_api.problems import Problem
from ingest_api.tenancy_commands import create_key, list_keys, revoke_key
from runtime.database import connect
from runtime.errors import Fatal, Reject, Unavailable
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.stack.layout import Layout, free_port
from runtime.stack.valkey import Valkey
from schemas.scopes import DEFAULT_SCOPES
from sinks.migrate import upgrade
from tests.embedded import running

EMAIL = "robot@example.org"


def settings_for(database: str, valkey: str) -> Settings:
    return Settings(_env_file=None, database_url=SecretStr(database), redis_url=SecretStr(valkey))


@pytest.fixture
def settings(fresh_database: str, valkey_url: str) -> Settings:
    settings = settings_for(fresh_database, valkey_url)
    upgrade(settings)
    return settings


@contextmanager
def process(settings: Settings, *, ttl_s: float = 0.0) -> Iterator[KeyRing]:
    """The key ring of one API process. A ttl of 0 asks the stores at every request."""
    database = connect(settings, "test", pool_size=2)
    cache = ValkeyKeys.at(settings.redis_url.get_secret_value(), settings.secret_key.get_secret_value())
    ring = KeyRing(cache=cache, table=PostgresKeys(database), ttl_s=ttl_s, stale_s=600, metrics=Metrics())
    try:
        yield ring
    finally:
        ring.close()
        cache.close()
        database.close()


async def status(ring: KeyRing, key: str) -> int:
    try:
        await ring.authenticate(f"Bearer {key}")
    except Problem as problem:
        return problem.status
    return 200


async def test_a_key_works_until_it_is_revoked(settings: Settings) -> None:
    key = create_key(settings, EMAIL, "pro")
    with process(settings) as ring:
        record = await ring.authenticate(f"Bearer {key}")
        assert (record.customer_id, record.tier, record.scopes) == (customer_id_of(EMAIL), "pro", DEFAULT_SCOPES)
        assert await status(ring, key[:-1] + ("a" if key[-1] != "a" else "b")) == 401
        prefix = key[: len("vla_") + 8]
        assert revoke_key(settings, prefix.removeprefix("vla_"))
        assert not revoke_key(settings, prefix)
        assert await status(ring, key) == 401


async def test_only_the_hash_is_kept(settings: Settings) -> None:
    key = create_key(settings, EMAIL, "free")
    secret = key.rpartition("_")[2] if "_" not in key[13:] else key[13:]
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        rows = connection.execute("SELECT k::text, c::text FROM api_keys k JOIN customers c ON c.id = k.customer_id")
        text = repr(rows.fetchall())
    assert hash_key(key) in text
    assert secret not in text
    cache = ValkeyKeys.at(settings.redis_url.get_secret_value(), settings.secret_key.get_secret_value())
    try:
        with process(settings, ttl_s=5) as ring:
            await ring.authenticate(f"Bearer {key}")
        found = cache.get(hash_key(key))
    finally:
        cache.close()
    assert found is not None
    assert secret not in repr(found)


def test_one_address_is_one_customer_with_the_tier_given_last(settings: Settings) -> None:
    first, second = create_key(settings, EMAIL, "free"), create_key(settings, EMAIL.upper(), "pro")
    assert first != second
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        customers = connection.execute("SELECT id, email, tier FROM customers").fetchall()
    assert customers == [(customer_id_of(EMAIL), EMAIL, "pro")]


def test_the_keys_of_a_customer_that_nobody_is_are_no_empty_list(settings: Settings) -> None:
    create_key(settings, EMAIL, "free")
    assert len(list_keys(settings, EMAIL)) == 2, "a heading and the key"
    with pytest.raises(Fatal, match="no customer"):
        list_keys(settings, "nobody@example.org")


def test_a_key_that_cannot_be_makes_no_customer(settings: Settings) -> None:
    with pytest.raises(Reject):
        create_key(settings, "nobody@example.org", "free", rate_limit=2**31)
    with pytest.raises(Fatal, match="no customer"):
        list_keys(settings, "nobody@example.org")


async def test_the_list_shows_prefix_state_and_use_and_no_secret(settings: Settings) -> None:
    used, revoked = create_key(settings, EMAIL, "pro"), create_key(settings, EMAIL, "pro")
    with process(settings) as ring:
        await ring.authenticate(f"Bearer {used}")
    revoke_key(settings, revoked[:12])
    lines = {line.split()[0]: line for line in list_keys(settings)}
    assert " active " in lines[used[:12]]
    assert lines[used[:12]].count("never") == 1, "it was used, and never expires"
    assert " revoked " in lines[revoked[:12]]
    assert used not in "".join(lines.values())


async def test_an_inactive_customer_is_403(settings: Settings) -> None:
    key = create_key(settings, EMAIL, "pro")
    with psycopg.connect(settings.database_url.get_secret_value()) as connection:
        connection.execute("UPDATE customers SET is_active = false")
    with process(settings) as ring:
        assert await status(ring, key) == 403


async def test_a_known_key_outlives_its_servers_and_a_new_one_is_503(fresh_database: str, own_layout: Layout) -> None:
    valkey = Valkey(own_layout)
    with running(valkey, own_layout) as server:
        settings = settings_for(fresh_database, valkey.url)
        upgrade(settings)
        known, unknown = create_key(settings, EMAIL, "pro"), create_key(settings, "b@example.org", "pro")
        gone = settings_for(f"postgresql://nobody@127.0.0.1:{free_port()}/none", valkey.url)
        with process(settings, ttl_s=5) as ring:
            assert await status(ring, known) == 200
        # Postgres away, Valkey knows the key: also a process that has just begun honours it.
        with process(gone) as ring:
            assert await status(ring, known) == 200
            assert await status(ring, unknown) == 503
            server.kill()
            # And it keeps to it with both away.
            assert await status(ring, known) == 200


def test_without_postgres_the_operator_is_told(valkey_url: str) -> None:
    with pytest.raises(Unavailable, match="Postgres"):
        create_key(settings_for(f"postgresql://nobody@127.0.0.1:{free_port()}/none", valkey_url), EMAIL, "pro")
