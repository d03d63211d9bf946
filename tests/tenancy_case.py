"""A customer on a real Postgres and a real Valkey, for the tests of keys, limits, usage and audit."""

from __future__ import annotations

import time
import uuid

import pytest
from pydantic import SecretStr

from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import Actor
from runtime.database import Database
from runtime.settings import Settings
from sinks.migrate import upgrade
from tests.postgres_case import database

__all__ = ["EMAIL", "OPERATOR", "customer", "database", "now_ms", "settings", "unique"]

EMAIL = "robot@example.org"
OPERATOR = Actor("ana", "cli")


@pytest.fixture
def settings(fresh_database: str, valkey_url: str) -> Settings:
    settings = Settings(_env_file=None, database_url=SecretStr(fresh_database), redis_url=SecretStr(valkey_url))
    upgrade(settings)
    return settings


@pytest.fixture
def customer(database: Database) -> str:
    return str(CustomerAdmin(database).ensure(OPERATOR, EMAIL, "pro").id)


def now_ms() -> int:
    return round(time.time() * 1000)


def unique() -> str:
    """The servers are shared: a customer of this test's own."""
    return f"test-{uuid.uuid4().hex[:12]}"
