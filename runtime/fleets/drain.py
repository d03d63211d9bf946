"""Whether the gates have handled everything that a fleet has sent."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

from confluent_kafka import KafkaException, TopicPartition

from runtime.errors import Unavailable
from runtime.kafka import build_consumer, end_positions
from runtime.settings import Settings


def backlog(settings: Settings, group: str, topics: Sequence[str]) -> int:
    """Records of these topics that the group has not committed. Raises Unavailable while Kafka is away."""
    with closing(build_consumer(settings, "vlastream-drain", group=group)) as consumer:
        try:
            open_records = 0
            for topic in topics:
                ends = end_positions(consumer, topic)
                places = [TopicPartition(topic, partition) for partition in ends]
                for place in consumer.committed(places, timeout=10):
                    low, _ = consumer.get_watermark_offsets(place, timeout=5.0)
                    open_records += max(ends[place.partition] - max(place.offset, low), 0)
            return open_records
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer: {error.args[0].str()}") from error
