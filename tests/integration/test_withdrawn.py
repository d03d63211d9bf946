"""A database that comes from a backup: what was taken away since stays away, and nothing else changes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import text

from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import Actor, KeyAdmin, KeyTerms
from runtime.database import Database, connect
from runtime.outbox import drain
from runtime.settings import Settings
from schemas.topics import AUDIT, CUSTOMERS
from sinks.audit import audited, write_audit
from sinks.migrate import upgrade
from sinks.recovery.withdrawn import withdraw_again
from tests.in_memory import InMemoryBroker

OPERATOR = Actor("ana", "cli")
_AS_BACKED_UP = text("UPDATE api_keys SET is_active = true, expires_at = NULL")


@pytest.fixture
def database(fresh_database: str) -> Iterator[Database]:
    settings = Settings(_env_file=None, database_url=fresh_database)
    upgrade(settings)
    opened = connect(settings, "test", pool_size=1)
    yield opened
    opened.close()


def write_the_audit_log(database: Database) -> None:
    """What waits in the outbox, by way of the topic, as the sink and the replay do."""
    broker = InMemoryBroker({AUDIT: 1, CUSTOMERS: 1})
    assert drain(database, broker.publisher()) > 0
    with database.begin() as connection:
        write_audit(connection, [audited(record) for record in broker.records(AUDIT)])


def key(database: Database, name: str) -> tuple[bool, float | None]:
    """Whether it is active, and in how many seconds it expires."""
    query = "SELECT is_active, extract(epoch FROM expires_at - now())::float8 FROM api_keys WHERE name = :name"
    with database.begin() as connection:
        is_active, expires_in_s = connection.execute(text(query), {"name": name}).one()
    return is_active, expires_in_s


def test_keys_that_were_revoked_or_rotated_after_a_backup_open_nothing_after_it_is_restored(database: Database) -> None:
    customer = str(CustomerAdmin(database).ensure(OPERATOR, "ana@example.org", "pro").id)
    keys = KeyAdmin(database)
    made = {name: keys.create(OPERATOR, customer, KeyTerms(name=name))[1] for name in ("kept", "revoked", "at once")}
    later = keys.create(OPERATOR, customer, KeyTerms(name="later"))[1]
    keys.revoke(OPERATOR, customer, str(made["revoked"].id))
    keys.rotate(OPERATOR, customer, str(made["at once"].id), 0)
    keys.rotate(OPERATOR, customer, str(later.id), 600)
    write_the_audit_log(database)
    with database.begin() as connection:
        connection.execute(text("DELETE FROM api_keys WHERE id NOT IN (:a, :b, :c, :d)"), {
            letter: row.id for letter, row in zip("abcd", (*made.values(), later), strict=True)
        })  # fmt: skip
        connection.execute(_AS_BACKED_UP)

    assert withdraw_again(database) == (3, 0)
    assert key(database, "kept") == (True, None)
    assert key(database, "revoked") == (False, None)
    for name, left_s in (("at once", 0), ("later", 600)):
        _, expires_in_s = key(database, name)
        assert expires_in_s is not None
        assert expires_in_s <= left_s
    assert withdraw_again(database) == (0, 0), "what is withdrawn is not counted twice"


def test_a_customer_stays_suspended_whose_last_word_was_that(database: Database) -> None:
    customers = CustomerAdmin(database)
    suspended, resumed, untouched = (
        str(customers.ensure(OPERATOR, f"{name}@example.org", "free").id) for name in ("ana", "bo", "cy")
    )
    customers.set_active(OPERATOR, suspended, False)
    customers.set_active(OPERATOR, resumed, False)
    customers.set_active(OPERATOR, resumed, True)
    write_the_audit_log(database)
    with database.begin() as connection:
        connection.execute(text("UPDATE customers SET is_active = true"))

    assert withdraw_again(database) == (0, 1)
    with database.begin() as connection:
        active = {row.id: row.is_active for row in connection.execute(text("SELECT id, is_active FROM customers"))}
    assert active == {suspended: False, resumed: True, untouched: True}
