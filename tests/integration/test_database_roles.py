"""Each role's Postgres user tries everything on every table of a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from psycopg.errors import InsufficientPrivilege
from pydantic import SecretStr

from runtime.database import connect
from runtime.errors import Fatal, Unavailable
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.postgres import Postgres
from schemas.database_access import DATABASE_ROLES, DatabaseAccess, database_access_table
from sinks.grants import make_roles
from sinks.migrate import upgrade
from tests.embedded import running

VIEWS = ("daily_usage", "monthly_usage", "safety_trend")
TABLES = (
    "api_keys", "audit_log", "consent_audit", "context_metadata", "customer_data_consent", "customers", "episodes",
    "erasures", "etl_runs", "feedback", "inference_log", "instruction_analytics", "outbox", "pending_embeddings",
    "robot_performance_metrics", "safety_incidents", "sink_marks", "usage_daily", "usage_robots",
    "alembic_version", "audit_trail", *VIEWS,
)  # fmt: skip
PASSWORD = "of-these-tests"
#: Each verb as a statement that does nothing where it is allowed.
VERBS = {
    "SELECT": "SELECT * FROM {table} LIMIT 0",
    "INSERT": "INSERT INTO {table} DEFAULT VALUES",
    "UPDATE": "UPDATE {table} SET {column} = DEFAULT WHERE false",
    "DELETE": "DELETE FROM {table} WHERE false",
    "TRUNCATE": "TRUNCATE {table}",
    "MAINTAIN": "REFRESH MATERIALIZED VIEW {table}",
}
ROLES = pytest.mark.parametrize("access", DATABASE_ROLES, ids=[access.role for access in DATABASE_ROLES])


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    layout = Layout(tmp_path_factory.mktemp("roles"))
    layout.create()
    return layout


@pytest.fixture(scope="module")
def server(layout: Layout) -> Iterator[Postgres]:
    # Of its own: users belong to the whole server.
    postgres = Postgres(layout, {"fsync": "off"})
    with running(postgres, layout):
        settings = owner(postgres)
        upgrade(settings)
        said: list[str] = []
        make_roles(settings, said.append)
        assert sum("made without a password" in line for line in said) == len(DATABASE_ROLES)
        postgres.make_users({access.user: PASSWORD for access in DATABASE_ROLES})
        yield postgres


def owner(postgres: Postgres) -> Settings:
    return Settings.model_validate({"database_url": postgres.dsn})


def address(postgres: Postgres, access: DatabaseAccess) -> str:
    return f"postgresql://{access.user}:{PASSWORD}@127.0.0.1:{postgres.port}/vlastream"


def may(connection: psycopg.Connection, statement: sql.Composed | str) -> bool:
    """Whether it is allowed; what else is wrong with it is another matter. Leaves nothing behind."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute(statement.encode() if isinstance(statement, str) else statement)
    except InsufficientPrivilege:
        return False
    except psycopg.DatabaseError:
        return True
    return True


def allowed(connection: psycopg.Connection, table: str) -> set[str]:
    row = connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum = 1", [table]
    ).fetchone()
    assert row is not None
    # A view is read, or refreshed where it is a materialized one.
    verbs = {"audit_trail": {"SELECT"}, **{view: {"SELECT", "MAINTAIN"} for view in VIEWS}}
    tried = {verb: VERBS[verb] for verb in verbs.get(table, set(VERBS) - {"MAINTAIN"})}
    names = {"table": sql.Identifier(table), "column": sql.Identifier(row[0])}
    return {verb for verb, text in tried.items() if may(connection, sql.SQL(text).format(**names))}


@ROLES
def test_a_role_does_to_each_table_what_is_declared_and_no_more(server: Postgres, access: DatabaseAccess) -> None:
    named = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm')"
    with psycopg.connect(server.dsn) as connection:
        assert {name for (name,) in connection.execute(named)} == set(TABLES), "say here and there who may what with it"
    with psycopg.connect(address(server, access)) as connection:
        found = {table: allowed(connection, table) for table in TABLES}
        assert found == {table: set(access.tables.get(table, ())) for table in TABLES}
        for table, columns in access.columns.items():
            assert may(connection, f"SELECT {', '.join(columns)} FROM {table} LIMIT 0")


@ROLES
def test_no_role_makes_changes_or_reads_what_is_no_table_of_ours(server: Postgres, access: DatabaseAccess) -> None:
    others = [other.user for other in DATABASE_ROLES if other is not access]
    attempts = (
        "CREATE TABLE own (id int)", "ALTER TABLE inference_log ADD COLUMN x int", "DROP TABLE inference_log",
        "CREATE SCHEMA own", "CREATE ROLE mine", "SELECT * FROM pg_authid", "COPY customers TO PROGRAM 'true'",
        "SELECT pg_read_file('/etc/passwd')", f"GRANT ALL ON inference_log TO {access.user}", "SET ROLE vlastream",
        *(f"SET ROLE {user}" for user in others), f"ALTER ROLE {others[0]} PASSWORD 'x'",
    )  # fmt: skip
    with psycopg.connect(server.dsn) as connection:
        more = "rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls, rolinherit"
        query = f"SELECT {more} FROM pg_roles WHERE rolname = '{access.user}'"
        assert connection.execute(query.encode()).fetchall() == [(False,) * 6]
    with psycopg.connect(address(server, access), autocommit=True) as connection:
        assert [attempt for attempt in attempts if may(connection, attempt) and not attempt.startswith("GRANT")] == []
        may(connection, f"GRANT ALL ON inference_log TO {access.user}")
        assert allowed(connection, "inference_log") == set(access.tables.get("inference_log", ()))
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(address(server, access).replace(PASSWORD, "guess"), connect_timeout=5)


def test_whatever_else_a_role_was_given_is_taken_back_by_the_next_upgrade(server: Postgres) -> None:
    api = DATABASE_ROLES[0]
    with psycopg.connect(server.dsn) as connection:
        connection.execute(f"GRANT DELETE ON inference_log TO {api.user}".encode())
        connection.execute(f"REVOKE SELECT ON feedback FROM {api.user}".encode())
    database = connect(Settings.model_validate({"database_url": address(server, api)}), "test", pool_size=1)
    try:
        with pytest.raises(Unavailable, match="run `vlastream db roles`"), database.begin() as lacking:
            lacking.exec_driver_sql("SELECT * FROM feedback")
    finally:
        database.close()
    upgrade(owner(server))
    with psycopg.connect(address(server, api)) as connection:
        assert "DELETE" not in allowed(connection, "inference_log")
        assert "SELECT" in allowed(connection, "feedback")


def test_a_user_gets_the_password_of_its_roles_url_and_the_one_before_opens_nothing(server: Postgres) -> None:
    etl = DATABASE_ROLES[2]
    password = "of this/test@only:%"
    before = address(server, etl)
    url = before.replace(PASSWORD, quote(password, safe=""))
    said: list[str] = []
    try:
        make_roles(owner(server).model_copy(update={"etl_database_url": SecretStr(url)}), said.append)
        assert f"{etl.user}: has the password of ETL_DATABASE_URL" in said
        assert not any("has the password" in line for line in said if etl.user not in line)
        with psycopg.connect(url) as connection:
            assert "SELECT" in allowed(connection, "feedback")
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            psycopg.connect(before, connect_timeout=5)
        with psycopg.connect(address(server, DATABASE_ROLES[0])) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        server.make_users({etl.user: PASSWORD})


def test_the_server_is_never_told_a_password_itself(server: Postgres, layout: Layout) -> None:
    api = DATABASE_ROLES[0]
    settings = owner(server).model_copy(update={"api_database_url": SecretStr(address(server, api))})
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET log_statement = 'all'")
        connection.execute("SELECT pg_reload_conf()")
        try:
            make_roles(settings, lambda line: None)
        finally:
            connection.execute("ALTER SYSTEM RESET log_statement")
            connection.execute("SELECT pg_reload_conf()")
    logged = layout.log("postgres").read_text()
    assert f'ALTER ROLE "{api.user}" LOGIN PASSWORD' in logged
    assert PASSWORD not in logged


def test_who_may_make_no_users_is_told_who_must(server: Postgres) -> None:
    api = DATABASE_ROLES[0]
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute("CREATE ROLE poor LOGIN PASSWORD 'poor'")
        connection.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO poor")
        try:
            poor = f"postgresql://poor:poor@127.0.0.1:{server.port}/vlastream"
            values = {"database_url": SecretStr(poor), "api_database_url": SecretStr(address(server, api))}
            with pytest.raises(Fatal, match=f"may not set the password of {api.user}: let somebody with CREATEROLE"):
                make_roles(Settings.model_validate(values), lambda line: None)
        finally:
            connection.execute("DROP OWNED BY poor")
            connection.execute("DROP ROLE poor")


def test_the_page_shows_the_table_of_the_code() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "security.md"
    assert database_access_table() in page.read_text(), "put the output of `vlastream db access` into docs/security.md"
