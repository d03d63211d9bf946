"""The dead letter topics of a cluster: read to their present end, sent again from, deleted from the front."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from confluent_kafka import KafkaException, TopicPartition

from runtime.dlq.letters import Letter, Selection, letter_of
from runtime.dlq.purge import Place
from runtime.dlq.replay import Cluster
from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_admin, build_consumer, check_consumed, end_positions, record_of, wait_for_kafka
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from schemas.headers import Source
from schemas.topics import DEAD_LETTER_SUFFIX, RESULTS

CLIENT_ID = "vlastream-dlq"
_TOPIC_PREFIX = "vla."
_TIMEOUT_S = 15.0
#: Nothing comes for so long although the end is not reached: the broker is gone.
_SILENCE_S = 15.0


class LetterLog:
    """Owns a groupless consumer: looking changes nothing. Methods raise Unavailable while Kafka is away."""

    def __init__(self, settings: Settings) -> None:
        wait_for_kafka(settings, timeout_s=_TIMEOUT_S)
        self._admin = build_admin(settings, CLIENT_ID)
        self._consumer = build_consumer(settings, CLIENT_ID, group=None)

    def close(self) -> None:
        self._consumer.close()

    def topics(self) -> list[str]:
        """Dead letter topics that there are, as far as this user may see them."""
        return [topic for topic in sorted(self._partitions()) if topic.endswith(DEAD_LETTER_SUFFIX)]

    def read(self, selection: Selection, newest: int | None = None) -> Iterator[Letter]:
        """Every letter of the topics that a selection can mean, up to their present end, partition by partition.

        newest: so many of each partition at most. Letters that the selection does not match are among them. Raises
        Fatal where it names a topic that has no dead letters.
        """
        topics = self.topics()
        wanted = [topic for topic in topics if topic.startswith(_TOPIC_PREFIX) and selection.wants_topic(topic)]
        for name in selection.topics:
            if not any(topic in (name, name + DEAD_LETTER_SUFFIX) for topic in topics):
                raise Fatal(f"{name} has no dead letter topic: see `vlastream topics list`")
        for topic in wanted:
            for partition, end in end_positions(self._consumer, topic).items():
                start = 0 if newest is None else max(end - newest, 0)
                yield from self._read_partition(topic, partition, start, end)

    def at(self, place: Source) -> Letter | None:
        """The one letter that lies there; None where there is none, or no more."""
        if not place.topic.endswith(DEAD_LETTER_SUFFIX) or place.partition >= self._partitions().get(place.topic, 0):
            return None
        end = end_positions(self._consumer, place.topic)[place.partition]
        found = self._read_partition(place.topic, place.partition, place.offset, min(end, place.offset + 1))
        return next((letter for letter in found if letter.place == place), None)

    def cluster(self) -> Cluster:
        """What `again` has to know, as of now."""
        partitions = self._partitions()
        ends = end_positions(self._consumer, RESULTS) if RESULTS in partitions else {}
        return Cluster(partitions=partitions, results_ends=ends)

    def delete(self, before: Mapping[Place, int]) -> None:
        """Delete the records of each partition in front of an offset. Raises Unavailable where the broker did not."""
        places = [TopicPartition(topic, partition, offset) for (topic, partition), offset in before.items()]
        for place, deleted in self._admin.delete_records(places, request_timeout=_TIMEOUT_S).items():
            try:
                deleted.result(timeout=_TIMEOUT_S)
            except KafkaException as error:
                raise Unavailable(f"{place.topic}/{place.partition} was not purged: {error.args[0].str()}") from error

    def _read_partition(self, topic: str, partition: int, start: int, end: int) -> Iterator[Letter]:
        place = TopicPartition(topic, partition)
        try:
            first, _ = self._consumer.get_watermark_offsets(place, timeout=_TIMEOUT_S)
            next_offset = max(first, start)
        except KafkaException as error:
            raise Unavailable(f"{topic}/{partition} cannot be read: {error.args[0].str()}") from error
        if next_offset >= end:
            return
        self._consumer.assign([TopicPartition(topic, partition, next_offset)])
        silence = Deadline(_SILENCE_S)
        while next_offset < end:
            message = self._consumer.poll(0.2)
            if message is None or not check_consumed(message):
                if silence.passed:
                    raise Unavailable(f"{topic}/{partition} was not read to its end: nothing came for {_SILENCE_S} s")
                continue
            silence = Deadline(_SILENCE_S)
            record = record_of(message)
            next_offset = record.offset + 1
            if record.offset < end:
                yield letter_of(record)

    def _partitions(self) -> dict[str, int]:
        try:
            found = self._admin.list_topics(timeout=_TIMEOUT_S).topics
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer: {error.args[0].str()}") from error
        return {name: len(topic.partitions) for name, topic in found.items()}
