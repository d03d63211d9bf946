"""What the console takes out of the log: the very record that a row tells of, and who may read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import SecretStr

from ingest_api.console.log_frames import MISSING_USER, Log, Place, outcome_of, request_of
from runtime.errors import Unavailable
from runtime.kafka import Record
from runtime.settings import Settings
from schemas import headers as h
from schemas.access import CONSOLE_USER, ROLES
from schemas.messages import InferenceRequest, Outcome, RequestSummary
from schemas.topics import OUTCOMES, REQUESTS

PLACE = Place(source=h.Source(REQUESTS, 2, 41), customer_id="c-1", robot_id="arm-1", request_id="r-1")
REQUEST = InferenceRequest(request_id="r-1", robot_id="arm-1")
OUTCOME = Outcome(request=RequestSummary(request_id="r-1", robot_id="arm-1", customer_id="c-1"))


def record(value: bytes | None, topic: str = REQUESTS, customer_id: str = "c-1") -> Record:
    headers = h.encode({h.CUSTOMER_ID: customer_id})
    return Record(topic, 2, 41, key=b"arm-1", value=value, timestamp_ms=0, raw_headers=headers)


def test_the_record_of_the_row_is_taken() -> None:
    assert request_of(record(REQUEST.SerializeToString()), PLACE) == REQUEST
    assert outcome_of(record(OUTCOME.SerializeToString(), OUTCOMES), PLACE) == OUTCOME


@pytest.mark.parametrize("changes", [{"request_id": "r-2"}, {"robot_id": "arm-2"}, {"customer_id": "c-2"}])
def test_a_record_that_lies_there_by_chance_is_not_shown(changes: dict[str, Any]) -> None:
    other = replace(PLACE, **changes)
    assert request_of(record(REQUEST.SerializeToString()), other) is None
    assert outcome_of(record(OUTCOME.SerializeToString(), OUTCOMES), other) is None


def test_on_a_fleets_topic_no_header_says_whose_a_request_is() -> None:
    fleets = record(REQUEST.SerializeToString(), "vla.requests.north.v1", customer_id="another")
    assert request_of(fleets, replace(PLACE, customer_id="north")) == REQUEST


@pytest.mark.parametrize("value", [None, b"", b"\xff\xff\xff"])
def test_what_cannot_be_read_is_as_if_it_were_gone(value: bytes | None) -> None:
    assert request_of(record(value), PLACE) is None
    assert outcome_of(record(value, OUTCOMES), PLACE) is None


async def test_on_a_kafka_with_users_the_console_needs_its_own() -> None:
    settings = Settings(
        _env_file=None,
        database_url=SecretStr("postgresql://x"),
        kafka_security_protocol="SASL_SSL",
        kafka_sasl_username="api",
        kafka_sasl_password=SecretStr("p"),
    )
    with pytest.raises(Unavailable, match="CONSOLE_KAFKA_SASL_USERNAME") as refused:
        await Log.of(settings, "c").request(PLACE)
    assert str(refused.value) == MISSING_USER


def test_the_consoles_user_writes_only_where_letters_died_and_joins_no_group() -> None:
    (access,) = [each for each in ROLES if each.role == CONSOLE_USER]
    died_in = {topic.removesuffix(".dlq") for topic in access.reads if topic.endswith(".dlq")}
    assert set(access.writes) == died_in
    assert access.groups == ()
