"""The two brokers that the contract suite runs against, behind one face."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable
from typing import Any, Protocol

from confluent_kafka import Message, TopicPartition
from confluent_kafka.cimpl import NewTopic

from runtime.kafka import build_admin, build_consumer, build_producer, check_consumed
from runtime.metrics import Metrics
from runtime.processor import OnCommit
from runtime.publisher import Publisher, PublisherPort
from runtime.settings import Settings
from schemas.topics import MAX_MESSAGE_BYTES
from tests.in_memory import InMemoryBroker

TIMEOUT_S = 30.0


class BrokerUnderTest(Protocol):
    def create_topic(self, partitions: int) -> str: ...
    @property
    def publisher(self) -> PublisherPort: ...
    def consumer(self, group: str, on_commit: OnCommit | None = None) -> Any:
        """A consumer with the methods of confluent_kafka.Consumer that the pipeline uses."""
        ...

    def close(self) -> None: ...


class InMemory:
    def __init__(self) -> None:
        self.broker = InMemoryBroker()
        self._publisher = self.broker.publisher()
        self._names = itertools.count()

    @property
    def publisher(self) -> PublisherPort:
        return self._publisher

    def create_topic(self, partitions: int) -> str:
        name = f"contract-{next(self._names)}"
        self.broker.create_topic(name, partitions)
        return name

    def consumer(self, group: str, on_commit: OnCommit | None = None) -> Any:
        return self.broker.consumer(group, on_commit)

    def close(self) -> None:
        """Nothing is open."""


class RealKafka:
    def __init__(self, bootstrap: str) -> None:
        self.settings = Settings(kafka_bootstrap_servers=bootstrap, _env_file=None)
        self._admin = build_admin(self.settings)
        self._publisher = Publisher(build_producer(self.settings, "contract"), Metrics())
        self._clients = itertools.count()

    @property
    def publisher(self) -> PublisherPort:
        return self._publisher

    def create_topic(self, partitions: int) -> str:
        name = f"contract-{uuid.uuid4().hex[:12]}"
        config = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(MAX_MESSAGE_BYTES)}
        topic = NewTopic(name, partitions, 1, config=config)
        self._admin.create_topics([topic])[name].result(TIMEOUT_S)
        return name

    def consumer(self, group: str, on_commit: OnCommit | None = None) -> Any:
        overrides: dict[str, Any] = {} if on_commit is None else {"on_commit": on_commit}
        return build_consumer(self.settings, f"contract-{next(self._clients)}", group=group, **overrides)

    def close(self) -> None:
        self._publisher.close(TIMEOUT_S)


def eventually(condition: Callable[[], bool], step: Callable[[], object] = lambda: time.sleep(0.01)) -> bool:
    """Take steps until a condition holds; false if it does not within the time that any of these tests gets."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > end:
            return False
        step()
    return True


def read(consumer: Any, count: int) -> list[Message]:
    """The next `count` records."""
    messages: list[Message] = []

    def step() -> None:
        message = consumer.poll(0.1)
        if message is not None and check_consumed(message):
            messages.append(message)

    assert eventually(lambda: len(messages) >= count, step), f"only {len(messages)} of {count} records came"
    return messages


def committed(broker: BrokerUnderTest, group: str, topic: str, partitions: int) -> list[int]:
    """Committed offset of each partition, 0 where there is none."""
    asking = broker.consumer(group)
    try:
        found = asking.committed([TopicPartition(topic, number) for number in range(partitions)], timeout=TIMEOUT_S)
        return [max(partition.offset, 0) for partition in found]
    finally:
        asking.close()
