"""Each role's Postgres user may do what its role does: the work itself, on a real server, as that user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ingest_api.customer_admin import CustomerAdmin
from ingest_api.key_admin import Actor, KeyAdmin, KeyTerms
from ingest_api.key_stores import PostgresKeys
from ingest_api.keys import hash_key
from ingest_api.reading import PostgresReader
from ingest_api.upkeep import used_this_month
from runtime.database import Database, connect
from runtime.outbox import drain
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from schemas.database_access import DATABASE_ROLES
from schemas.scopes import Scope
from schemas.topics import AUDIT, CONSENT, CUSTOMERS
from sinks.etl.commands import PIPELINES, Etl
from sinks.etl.server import only_one
from sinks.grants import make_roles
from sinks.migrate import upgrade
from sinks.retention import Retention
from tests.embedded import running
from tests.in_memory import InMemoryBroker
from tests.integration.test_etl import DAY, Cache, ask_for_erasure, erase, lived
from tests.lake_case import LakeFolder
from tests.postgres_case import rows
from tests.sink_case import SALT
from tests.unit.api_case import Api
from tests.unit.api_stand_ins import key_record

PASSWORD = "of-these-tests"
OPERATOR = Actor("ana", "cli")


class Server:
    """A database with users for roles, of this test's own: users belong to the whole server."""

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self._postgres = postgres
        self._folder = folder
        upgrade(self.settings())
        make_roles(self.settings(), lambda line: None)
        postgres.make_users({access.user: PASSWORD for access in DATABASE_ROLES})

    def settings(self, role: str = "") -> Settings:
        url = self._postgres.dsn
        if role:
            (user,) = (access.user for access in DATABASE_ROLES if access.role == role)
            url = f"postgresql://{user}:{PASSWORD}@127.0.0.1:{self._postgres.port}/vlastream"
        values: dict[str, Any] = {"data_dir": self._folder, "enable_s3_storage": False, "anonymization_hash_salt": SALT}
        return Settings.model_validate({"database_url": url, **values})

    @contextmanager
    def as_role(self, role: str = "") -> Iterator[Database]:
        """Without a role: as the owner."""
        database = connect(self.settings(role), "test", pool_size=2)
        try:
            yield database
        finally:
            database.close()


@pytest.fixture
def server(own_layout: Layout, tmp_path: Path) -> Iterator[Server]:
    postgres = Postgres(own_layout, {"fsync": "off"})
    with running(postgres, own_layout):
        yield Server(postgres, tmp_path)


async def test_sink_etl_and_api_do_their_work_as_their_own_users(server: Server, tmp_path: Path) -> None:
    folder = LakeFolder(tmp_path / "lake")
    with server.as_role("sink-postgres") as sink:
        lived(folder, sink)
    with server.as_role() as owner, server.as_role("etl") as etl:
        assert len(rows(owner, "SELECT 1 FROM inference_log")) == 6
        with only_one(etl) as alone:
            assert alone()
        Etl(server.settings("etl"), etl, folder.lake).run(DAY, PIPELINES, dry_run=False, say=lambda line: None)
        assert len(rows(owner, "SELECT 1 FROM etl_runs WHERE state = 'done'")) == len(PIPELINES)
        await api_works(server)
        ask_for_erasure(owner, "north")
        assert erase(etl, folder, Cache()) == 1
        rows(
            owner,
            "INSERT INTO customer_data_consent VALUES ('south', 'full', 1, now(), '2026-11-24Z', true, true, true, "
            "null, null, now()) RETURNING 1",
        )
        later = datetime.combine(DAY, datetime.min.time(), UTC) + timedelta(days=400)
        kept = server.settings("etl").model_copy(update={"safety_data_retention_days": 90})
        Retention(kept, etl, folder.lake, later).run(dry_run=False, say=lambda line: None)
        assert rows(owner, "SELECT 1 FROM inference_log") == []


async def api_works(server: Server) -> None:
    """Keys and customers are made, found, changed; every route that reads finds its rows."""
    with server.as_role("api") as database:
        database.ping()
        customers, keys = CustomerAdmin(database), KeyAdmin(database)
        customer = str(customers.ensure(OPERATOR, "ana@example.org", "pro").id)
        secret, row = keys.create(OPERATOR, customer, KeyTerms())
        keys.change(OPERATOR, customer, str(row.id), {"name": "line 3"})
        keys.rotate(OPERATOR, customer, str(row.id), 60)
        keys.revoke(OPERATOR, customer, str(row.id))
        customers.set_tier(OPERATOR, customer, "free")
        customers.set_limits(OPERATOR, customer, {"max_robots": 3})
        customers.set_active(OPERATOR, customer, False)
        assert PostgresKeys(database).find(hash_key(secret)) is not None
        assert used_this_month(database, datetime.now(UTC).timestamp()) is not None
        broker = InMemoryBroker({AUDIT: 1, CUSTOMERS: 1, CONSENT: 1})
        assert drain(database, broker.publisher()) > 0
        api = Api(database=database, reader=PostgresReader(database))  # type: ignore[arg-type] # a real one
        api.table.add(key_record(customer_id="north", scopes=tuple(Scope)))
        document = api.app.openapi()
        reads = [path for path, methods in document["paths"].items() if "get" in methods and "{" not in path]
        asked = [path for path in reads if path.startswith("/v1/")]
        assert len(asked) > 10
        async with api.client() as client:
            for path in [*asked, "/v1/search/instructions?q=pick&min_success_rate=0.1", "/v1/customers/north/data"]:
                answer = await client.get(path)
                assert answer.status_code != 503, f"{path}: {answer.text}"
