"""Dead letters at the console's desk on a real Kafka: the newest of each partition, one by its place, sent again."""

from __future__ import annotations

import uuid

import pytest
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined] # re-exported without __all__

from ingest_api.console.letter_desk import NEWEST, LetterDesk
from runtime.dead_letters import write_dead_letter
from runtime.dlq.replay import REPLAYED_FROM, Unfit
from runtime.errors import Poison, Unavailable
from runtime.kafka import Record, build_admin, build_consumer, build_producer, end_positions
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from schemas.headers import Source
from schemas.topics import dead_letter_topic

pytestmark = pytest.mark.kafka

TOPIC = f"vla.requests.letters-{uuid.uuid4().hex[:8]}.v1"
BURIED = dead_letter_topic(TOPIC)
#: More than a list is made from.
LETTERS = NEWEST + 3


@pytest.fixture(scope="module")
def settings(kafka_bootstrap: str) -> Settings:
    """A topic of two partitions, and a dead letter topic of one with LETTERS letters."""
    found = Settings(_env_file=None, kafka_bootstrap_servers=kafka_bootstrap)
    admin = build_admin(found)
    for made in admin.create_topics([NewTopic(TOPIC, 2, 1), NewTopic(BURIED, 1, 1)]).values():
        made.result(30)
    publisher = Publisher(build_producer(found, "letters-test"), Metrics())
    for number in range(LETTERS):
        record = Record(TOPIC, 1, number, b"arm-1", b"value %d" % number, 5)
        error = Poison("undecodable", "made for a test")
        write_dead_letter(publisher, Metrics(), record, reason="undecodable", stage="decode", group="g", error=error)
    publisher.close(30)
    return found


async def test_a_pile_has_the_newest_letters_without_what_they_hold(settings: Settings) -> None:
    pile = await LetterDesk(settings).pile(TOPIC)
    assert TOPIC in pile.topics
    assert sorted(entry.place.offset for entry in pile.entries) == list(range(LETTERS - NEWEST, LETTERS))
    assert {(entry.topic, entry.reason, entry.stage) for entry in pile.entries} == {(TOPIC, "undecodable", "decode")}


async def test_a_topic_that_has_no_letters_is_an_empty_pile(settings: Settings) -> None:
    assert (await LetterDesk(settings).pile("vla.nobodys.v1")).entries == []


async def test_letters_are_read_by_their_places_and_those_that_are_none_are_left_out(settings: Settings) -> None:
    places = [Source(BURIED, 0, 2), Source(BURIED, 0, LETTERS), Source(BURIED, 9, 0), Source(TOPIC, 0, 0)]
    letters, _ = await LetterDesk(settings).at([*places, Source(BURIED, 0, 1)])
    assert [letter.value for letter in letters] == [b"value 2", b"value 1"]


async def test_a_letter_goes_back_to_its_partition_and_says_where_from(settings: Settings) -> None:
    desk = LetterDesk(settings)
    letters, cluster = await desk.at([Source(BURIED, 0, 4), Source(BURIED, 0, 5)])
    first, second = await desk.send(letters, cluster)
    assert not isinstance(first, Unfit)
    assert not isinstance(second, Unfit)
    assert (first.topic, first.partition, second.offset) == (TOPIC, 1, first.offset + 1)
    consumer = build_consumer(settings, "letters-test", group=None)
    try:
        assert end_positions(consumer, TOPIC) == {0: 0, 1: second.offset + 1}
    finally:
        consumer.close()
    assert REPLAYED_FROM not in dict(letters[0].raw_headers)


async def test_a_kafka_that_is_away_is_told(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.dlq.log._TIMEOUT_S", 1.0)
    away = LetterDesk(settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"}))
    with pytest.raises(Unavailable):
        await away.pile("")


async def test_without_a_user_the_missing_setting_is_named() -> None:
    with pytest.raises(Unavailable, match="CONSOLE_KAFKA_SASL_USERNAME"):
        await LetterDesk(None).pile("")
