"""Postgres, Valkey and S3 of a secure stack: by TLS, with a certificate that clients check."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
import redis

from runtime.database import connect
from runtime.errors import Fatal, Unavailable
from runtime.settings import Settings
from runtime.stack.commands import up
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from runtime.stack.s3 import S3
from runtime.stack.security import StackSecurity, remember_mode
from runtime.stack.tls import TlsFront
from runtime.stack.valkey import Valkey
from sinks.lake_reader import s3_filesystem
from sinks.psql import psql
from sinks.recovery import postgres_dump
from sinks.storage import open_storage
from tests.embedded import running


@dataclass(frozen=True)
class Servers:
    database_url: str
    redis_url: str
    s3: dict[str, str]
    ca: str
    #: The authority of another stack.
    other_ca: str


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    layout, elsewhere = Layout(tmp_path_factory.mktemp("secure")), Layout(tmp_path_factory.mktemp("other"))
    layout.create()
    elsewhere.create()
    security, other = StackSecurity(layout), StackSecurity(elsewhere)
    security.prepare()
    other.prepare()
    postgres, valkey, s3 = Postgres(layout, {"fsync": "off"}), Valkey(layout), S3(layout, security=security)
    front = TlsFront(layout, security, postgres, valkey)
    with running(postgres, layout), running(valkey, layout), running(s3, layout), running(front, layout):
        yield Servers(
            database_url=front.database_url,
            redis_url=front.redis_url,
            s3={
                f"s3_{name}": getattr(s3.settings, name) for name in ("endpoint", "bucket", "access_key", "secret_key")
            },
            ca=str(security.certificates.ca),
            other_ca=str(other.certificates.ca),
        )


def test_postgres_answers_by_tls_to_who_trusts_its_authority(servers: Servers) -> None:
    settings = Settings.model_validate({"database_url": servers.database_url})
    database = connect(settings, "test", pool_size=1)
    database.ping()
    database.close()
    with psycopg.connect(servers.database_url) as connection:
        assert connection.pgconn.ssl_in_use
        rows = connection.execute("SELECT repeat('x', 100000) FROM generate_series(1, 50)").fetchall()
        assert sum(len(row[0]) for row in rows) == 5_000_000
    with pytest.raises(psycopg.OperationalError, match="certificate"):
        psycopg.connect(servers.database_url.replace(servers.ca, servers.other_ca), connect_timeout=5)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(servers.database_url.replace("verify-full", "disable"), connect_timeout=5)


def test_a_dump_is_made_by_tls_whether_or_not_pg_dump_speaks_it(servers: Servers, tmp_path: Path) -> None:
    settings, file = Settings.model_validate({"database_url": servers.database_url}), tmp_path / "dump"
    with psycopg.connect(servers.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
        connection.commit()
        (snapshot,) = connection.execute("SELECT pg_export_snapshot()").fetchone() or ("",)
        postgres_dump.dump(settings, file, snapshot)
        assert "kept" in postgres_dump.tables_in(settings, file)
        connection.rollback()
        connection.execute("TRUNCATE kept")
        connection.commit()
        postgres_dump.restore_rows(settings, file, ["kept"])
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)
        strange = servers.database_url.replace(servers.ca, servers.other_ca)
        with pytest.raises((Unavailable, Fatal)):
            postgres_dump.dump(Settings.model_validate({"database_url": strange}), tmp_path / "none", snapshot)


def test_valkey_answers_by_tls_to_who_trusts_its_authority(servers: Servers) -> None:
    with redis.Redis.from_url(servers.redis_url) as client:
        client.set("large", b"x" * 1_000_000)
        assert client.strlen("large") == 1_000_000
    plain = servers.redis_url.replace("rediss", "redis").partition("?")[0]
    for url in (servers.redis_url.replace(servers.ca, servers.other_ca), plain):
        with redis.Redis.from_url(url, socket_timeout=5) as client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_s3_answers_by_tls_to_who_trusts_its_authority(servers: Servers) -> None:
    settings = Settings.model_validate({**servers.s3, "s3_ca_bundle": servers.ca})
    storage = open_storage(settings)
    storage.ping()
    storage.create("folder/file", b"content")
    assert storage.read("folder/file", 0, 100) == b"content"
    assert s3_filesystem(settings).get_file_info(f"{settings.s3_bucket}/folder/file").size == 7
    careful = open_storage(settings.model_copy(update={"s3_ca_bundle": servers.other_ca}))
    with pytest.raises(Unavailable):
        careful.ping()


def test_psql_reaches_postgres_by_tls_whether_or_not_it_speaks_it(
    servers: Servers, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.model_validate({"database_url": servers.database_url})
    assert psql(settings, [servers.database_url, "-Atc", "SELECT 6 * 7"]) == 0
    assert capfd.readouterr().out == "42\n"
    assert psql(settings, ["-c", "SELECT 1 / 0"]) != 0
    strange = servers.database_url.replace(servers.ca, servers.other_ca)
    assert psql(Settings.model_validate({"database_url": strange}), ["-c", "SELECT 1"]) != 0


def test_what_the_servers_keep_is_for_their_owner_alone(servers: Servers) -> None:
    data = Path(servers.ca).parents[1]
    open_to_others = {p.name for p in data.iterdir() if p.is_dir() and stat.S_IMODE(p.stat().st_mode) & 0o077}
    assert open_to_others == set()
    assert stat.S_IMODE(data.stat().st_mode) & 0o066 == 0


def test_keys_and_passwords_are_for_their_owner_alone(own_layout: Layout) -> None:
    security = StackSecurity(own_layout)
    security.prepare()
    files = security.certificates
    secrets = [files.key, files.chain_and_key, files.pkcs12, own_layout.data("secrets.json")]
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    made = files.ca.read_bytes()
    StackSecurity(own_layout).prepare()
    assert files.ca.read_bytes() == made, "a second start keeps the authority that clients know"


def test_a_plain_stack_that_runs_does_not_pass_for_a_secure_one(
    own_layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.stack.commands.is_running", lambda folder: True)
    said: list[str] = []
    remember_mode(own_layout, secure=False)
    assert up(secure=True, folder=own_layout.folder, say=said.append) == 1
    assert "without TLS" in said[0]


def test_a_stack_that_was_started_plain_does_not_become_secure(own_layout: Layout, tmp_path: Path) -> None:
    assert not remember_mode(own_layout, secure=False)
    assert remember_mode(own_layout, secure=True), "nothing was made yet"
    own_layout.data("kafka").mkdir()
    assert remember_mode(own_layout, secure=False), "a secure stack stays one"
    plain = Layout(tmp_path / "plain")
    plain.create()
    remember_mode(plain, secure=False)
    plain.data("kafka").mkdir()
    with pytest.raises(Fatal, match="without --secure"):
        remember_mode(plain, secure=True)
