"""Who may do what is declared once: grants hold for declared topics alone, and the page shows the same table."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.group_lag import watched_groups
from runtime.kafka import client_config, security_config, ssl_context
from runtime.settings import Settings
from schemas.access import (
    ROLES,
    Operation,
    Resource,
    access_table,
    all_grants,
    fleet_grants,
    fleet_user,
    is_ours,
    role_grants,
)
from schemas.cards import valid_name
from schemas.topics import FLEETS, TRAFFIC, declare
from tests.cards import cards

PAGE = Path(__file__).resolve().parents[2] / "docs" / "security.md"
NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True).filter(valid_name)


def test_the_page_shows_the_table_of_the_code() -> None:
    assert access_table() in PAGE.read_text(), "put the output of `vlastream topics access` into docs/security.md"


def declared() -> set[str]:
    topics = declare(fleets=["north"], deployments=["model-a"], partitions=1, accepted_partitions=1, reply_partitions=1)
    return {topic.name for topic in topics}


def test_every_topic_has_somebody_who_may_write_it_and_somebody_who_may_read_it() -> None:
    grants = all_grants(["north"], ["model-a"])
    written = {grant.name for grant in grants if grant.operation is Operation.WRITE}
    read = {grant.name for grant in grants if grant.operation is Operation.READ}
    assert declared() - written == {FLEETS, TRAFFIC}, "those are the operator's; add others to schemas/access.py"
    assert {topic for topic in declared() - read if not topic.endswith(".dlq")} == set()


def test_every_grant_is_for_a_topic_that_is_declared() -> None:
    topics = declared()
    granted = {grant.name for grant in all_grants(["north"], ["model-a"]) if grant.resource is Resource.TOPIC}
    assert granted <= topics
    assert not any("<" in grant.name for grant in all_grants(["north"], ["model-a"]))


def test_the_api_may_see_how_far_every_group_is_that_it_tells_of() -> None:
    grants = role_grants(["north"], ["test-model-a"])
    seen = {grant.name for grant in grants if grant.user == "api" and grant.operation is not Operation.WRITE}
    written = {grant.name for grant in grants if grant.user == "api" and grant.operation is Operation.WRITE}
    for watched in watched_groups(cards(), ["north"]):
        assert watched.group in seen
        assert set(watched.topics) <= seen | written
    describes = {grant.name for grant in grants if grant.operation is Operation.DESCRIBE}
    own = {grant.name for grant in grants if grant.user == "api" and grant.operation is Operation.READ}
    assert describes & own == set(), "who may read it sees it anyway"


@given(NAMES, NAMES)
def test_two_fleets_share_no_permission(one: str, other: str) -> None:
    if one == other:
        return
    mine, theirs = fleet_grants(one), fleet_grants(other)
    assert not {grant.name for grant in mine} & {grant.name for grant in theirs}
    prefixes = [grant.name for grant in mine if grant.prefix]
    assert not any(grant.name.startswith(prefix) for grant in theirs for prefix in prefixes)


@given(NAMES)
def test_a_fleet_reads_nothing_but_its_replies_whatever_its_name_is(name: str) -> None:
    reads = [g.name for g in fleet_grants(name) if g.operation is Operation.READ and g.resource is Resource.TOPIC]
    assert reads == [f"vla.replies.{name}.v1"]
    assert fleet_user(name) not in {access.role for access in ROLES}
    assert is_ours(fleet_user(name))


def test_other_users_permissions_are_not_ours_to_take() -> None:
    assert not is_ours("admin")
    assert not is_ours("somebody")


def test_sasl_without_a_user_is_refused() -> None:
    with pytest.raises(ValidationError, match="KAFKA_SASL_USERNAME"):
        Settings(_env_file=None, kafka_security_protocol="SASL_SSL")


def test_a_plain_client_says_nothing_of_security_and_a_secure_one_checks_the_servers_name() -> None:
    plain = Settings(_env_file=None)
    assert security_config(plain) == {}
    assert ssl_context(plain) is None
    secure = Settings.model_validate(
        {
            "kafka_security_protocol": "SASL_SSL",
            "kafka_sasl_username": "gate",
            "kafka_sasl_password": "hush-hush",
            "kafka_ssl_ca_location": "/ca.pem",
        }
    )
    config = client_config(secure, "client")
    assert config["ssl.endpoint.identification.algorithm"] == "https"
    assert (config["sasl.username"], config["sasl.password"]) == ("gate", "hush-hush")
    assert config["ssl.ca.location"] == "/ca.pem"
    assert "hush-hush" not in repr(secure)
