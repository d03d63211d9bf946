"""The console's reads of single records on a real Kafka: what is there, what retention took, what never was."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import replace

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined] # re-exported without __all__

from ingest_api.console.log_frames import Log, Place
from runtime.errors import Unavailable
from runtime.kafka import build_admin, build_producer
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from schemas.headers import Source
from schemas.messages import Image, InferenceRequest

pytestmark = pytest.mark.kafka

TOPIC = f"vla.requests.console-{uuid.uuid4().hex[:8]}.v1"
RECORDS = 6
#: Of the largest kind that the gate lets in.
IMAGE_BYTES = 500 * 1024


def place(offset: int) -> Place:
    return Place(source=Source(TOPIC, 0, offset), customer_id="c", robot_id="arm-1", request_id=f"r-{offset}")


@pytest.fixture(scope="module")
def settings(kafka_bootstrap: str) -> Settings:
    """A topic of large requests, the first two of which retention took."""
    found = Settings(_env_file=None, kafka_bootstrap_servers=kafka_bootstrap)
    admin = build_admin(found)
    admin.create_topics([NewTopic(TOPIC, 1, 1)])[TOPIC].result(30)
    producer = build_producer(found, "console-test")
    for number in range(RECORDS):
        request = InferenceRequest(request_id=f"r-{number}", robot_id="arm-1")
        request.images.append(Image(camera="base", data=bytes([number]) * IMAGE_BYTES))
        producer.produce(TOPIC, request.SerializeToString(), partition=0)
    assert producer.flush(30) == 0
    for answer in admin.delete_records([TopicPartition(TOPIC, 0, 2)]).values():
        answer.result(30)
    return found


@pytest.fixture
def log(settings: Settings) -> Iterator[Log]:
    opened = Log.of(settings, "console-test")
    yield opened
    opened.close(Deadline(10))


async def test_each_record_is_read_back_whole_in_any_order(log: Log) -> None:
    for number in (5, 2, 4, 2, 3):
        message = await log.request(place(number))
        assert message is not None
        assert message.images[0].data == bytes([number]) * IMAGE_BYTES


@pytest.mark.parametrize("offset", [0, 1, RECORDS, RECORDS + 100])
async def test_what_retention_took_and_what_never_was_is_none(log: Log, offset: int) -> None:
    assert await log.request(place(offset)) is None


async def test_a_topic_or_partition_that_is_not_there_is_no_error_of_the_process(log: Log) -> None:
    for source in (Source(TOPIC, 7, 0), Source("vla.requests.nobody.v1", 0, 0)):
        with pytest.raises(Unavailable):
            await log.request(replace(place(3), source=source))
    assert await log.request(place(3)) is not None


async def test_a_kafka_that_is_away_is_told_within_the_time_of_a_read(settings: Settings) -> None:
    away = Log.of(settings.model_copy(update={"kafka_bootstrap_servers": "127.0.0.1:1"}), "console-away")
    with pytest.raises(Unavailable):
        await away.request(place(3))
    away.close(Deadline(10))
