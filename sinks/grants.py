"""Brings the rights of the roles' Postgres users to what schemas/database_access.py declares."""

from __future__ import annotations

import logging
from collections.abc import Callable

import psycopg
from psycopg import sql
from sqlalchemy import Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from runtime.database import connect
from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.database_access import DATABASE_ROLES, DatabaseAccess

log = logging.getLogger(__name__)

Say = Callable[[str], None]
#: Held by whoever changes rights: two at once would fail on each other's rows of the catalogue.
_LOCK = 0x766C6772
#: Refreshing a view without owning it.
_MAINTAIN_FROM = 170_000


def make_roles(settings: Settings, say: Say) -> None:
    """Make the users that are not there yet, and give all of them their rights and the passwords that are known.

    A password is known where the settings have the DATABASE_URL of the role; a user that is made without one lets
    nobody in. Raises Unavailable while Postgres is away, Fatal where we may make no users or a URL is another user's.
    """
    urls = urls_of(settings)
    passwords = {access.user: _password(access, urls[access.role]) for access in DATABASE_ROLES if urls[access.role]}
    database = connect(settings, "vlastream-grants", pool_size=1, statement_timeout_s=None)
    try:
        with database.begin() as connection:
            there = existing(connection)
            missing = [access.user for access in DATABASE_ROLES if access not in there]
            if missing and not _may_make_users(connection):
                raise Fatal(
                    f"these users are missing and we may make none: {', '.join(missing)}: let somebody with CREATEROLE "
                    "run `vlastream db roles`"
                )
            for user in missing:
                connection.execute(text(f"CREATE ROLE {user} LOGIN NOINHERIT"))
                if user not in passwords:
                    say(f"{user}: made without a password, so nobody is let in: ALTER ROLE {user} PASSWORD '...'")
            for access in DATABASE_ROLES:
                if access.user in passwords:
                    _set_password(connection, access, passwords[access.user])
                    say(f"{access.user}: has the password of {access.url_setting}")
            renew(connection)
    finally:
        database.close()
    for access in DATABASE_ROLES:
        say(f"{access.user}: may do what docs/security.md says of `{access.role}`, and nothing else")


def existing(connection: Connection) -> list[DatabaseAccess]:
    """Those roles that have a user."""
    users = set(connection.execute(text("SELECT rolname FROM pg_roles")).scalars())
    return [access for access in DATABASE_ROLES if access.user in users]


def renew(connection: Connection) -> None:
    """Give the users that are there what is declared, on tables that are there, and take away whatever else they had.

    In the caller's transaction. Does nothing where no role has a user.
    """
    roles = existing(connection)
    if not roles:
        return
    version = int(connection.execute(text("SHOW server_version_num")).scalar_one())
    if version < _MAINTAIN_FROM:
        raise Fatal(f"users for roles need PostgreSQL 17 or later (MAINTAIN), this is {version // 10_000}")
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    kinds = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'm', 'p')"
    )
    there = set(connection.execute(text(kinds)).scalars())
    for access in roles:
        connection.execute(text(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {access.user}"))
        for table, rights in access.tables.items():
            if table in there:
                connection.execute(text(f"GRANT {', '.join(rights)} ON {table} TO {access.user}"))
        for table, columns in access.columns.items():
            if table in there:
                connection.execute(text(f"GRANT SELECT ({', '.join(columns)}) ON {table} TO {access.user}"))
    log.info("rights of %s are as declared", ", ".join(access.user for access in roles), extra={"action": "grants"})


def urls_of(settings: Settings) -> dict[str, str]:
    """Role -> the DATABASE_URL that it is said to have; empty where nobody says."""
    urls = {
        "api": settings.api_database_url,
        "sink-postgres": settings.sink_postgres_database_url,
        "etl": settings.etl_database_url,
    }
    return {role: url.get_secret_value() for role, url in urls.items()}


def _password(access: DatabaseAccess, address: str) -> str:
    """The password in the URL that a role is said to have. Raises Fatal for a URL that cannot be its own."""
    name = access.url_setting
    try:
        url = make_url(address)
    except ArgumentError as error:
        raise Fatal(f"{name} is no URL: write postgresql://{access.user}:PASSWORD@HOST:5432/DATABASE") from error
    if url.username != access.user:
        raise Fatal(f"{name}: the user of `{access.role}` is {access.user}, not {url.username or 'nobody'}")
    if not url.password:
        raise Fatal(f"{name} has no password: make one with `openssl rand -hex 32`")
    return url.password


def _set_password(connection: Connection, access: DatabaseAccess, password: str) -> None:
    """The server is told a verifier (SCRAM-SHA-256), so that no log of its statements has the password."""
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection)
    verifier = driver.pgconn.encrypt_password(password.encode(), access.user.encode(), b"scram-sha-256").decode()
    told = sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(access.user), sql.Literal(verifier))
    try:
        driver.execute(told)
    except psycopg.errors.InsufficientPrivilege as error:
        raise Fatal(
            f"we may not set the password of {access.user}: let somebody with CREATEROLE do it, and leave "
            f"{access.url_setting} out here"
        ) from error


def _may_make_users(connection: Connection) -> bool:
    query = "SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user"
    return bool(connection.execute(text(query)).scalar_one())
