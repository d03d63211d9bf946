"""Users of the roles in Postgres: a wrong DATABASE_URL of a role is refused before anything is changed."""

from __future__ import annotations

import pytest

from runtime.errors import Fatal
from runtime.settings import Settings
from schemas.database_access import DATABASE_ROLES
from sinks.grants import make_roles, urls_of


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("postgresql://vlastream:owner@h/v", "the user of `etl` is vlastream_etl, not vlastream"),
        ("postgresql://vlastream_api:x@h/v", "the user of `etl` is vlastream_etl, not vlastream_api"),
        ("postgresql://h/v", "not nobody"),
        ("postgresql://vlastream_etl@h/v", "has no password"),
        ("vlastream_etl", "is no URL"),
    ],
)
def test_a_url_that_is_not_the_roles_own_is_refused_by_its_name(url: str, complaint: str) -> None:
    # Nothing listens there: it is refused before anybody is asked.
    settings = Settings(_env_file=None, database_url="postgresql://o:p@127.0.0.1:1/v", etl_database_url=url)
    with pytest.raises(Fatal, match=f"ETL_DATABASE_URL.*{complaint}"):
        make_roles(settings, lambda line: None)


@pytest.mark.parametrize("role", [access.role for access in DATABASE_ROLES])
def test_every_role_that_uses_postgres_has_a_setting_for_its_url(role: str) -> None:
    name = f"{role.replace('-', '_')}_database_url"
    settings = Settings.model_validate({name: "postgresql://u:p@h/v"})
    assert urls_of(settings) == {access.role: "" for access in DATABASE_ROLES} | {role: "postgresql://u:p@h/v"}
