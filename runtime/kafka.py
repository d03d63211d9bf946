"""The one place where Kafka clients are configured and where their errors are translated."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from runtime.broker_watch import INTERVAL_MS, BrokerWatch
from runtime.errors import Fatal, Unavailable
from runtime.settings import Settings
from schemas import headers as h
from schemas.topics import MAX_MESSAGE_BYTES

#: Room for a record that the broker let in although it is too large for us: it becomes a dead letter.
MAX_RECORD_BYTES = 2 * 1024 * 1024
#: A producer goes on trying to send a record for so long; then it has failed, and is not sent any more.
DELIVERY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Record:
    """One record as a stage sees it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    #: Append time of the broker, Unix epoch in milliseconds.
    timestamp_ms: int
    raw_headers: h.RawHeaders = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return h.decode(self.raw_headers)

    @property
    def source(self) -> h.Source:
        return h.Source(self.topic, self.partition, self.offset)


def record_of(message: Message) -> Record:
    """A consumed message without an error, as a Record."""
    raw: Iterable[tuple[str, Any]] = message.headers() or []  # type: ignore[assignment] # the stub says str
    return Record(
        topic=message.topic() or "",
        partition=message.partition() or 0,
        offset=message.offset() or 0,
        key=message.key(),
        value=message.value(),
        timestamp_ms=message.timestamp()[1],
        raw_headers=[(name, value if isinstance(value, bytes) else str(value or "").encode()) for name, value in raw],
    )


def client_config(settings: Settings, client_id: str) -> dict[str, Any]:
    return {
        "bootstrap.servers": settings.kafka_bootstrap_servers,
        "client.id": client_id,
        # A broker that restarts is back within a second on the robot path, not after the default backoff of 10 s.
        "reconnect.backoff.ms": 50,
        "reconnect.backoff.max.ms": 1000,
        # A cluster that just came back may name no broker at all. librdkafka then forgets those it knew, and would
        # look at bootstrap.servers again only after five minutes, while the process seems to be ready.
        "metadata.recovery.rebootstrap.trigger.ms": 3000,
        "socket.nagle.disable": True,
        "allow.auto.create.topics": False,
        # librdkafka writes a line to standard error at each failed connection; what fails is told by exceptions.
        "log_level": 2,
        **security_config(settings),
    }


def security_config(settings: Settings) -> dict[str, Any]:
    """How librdkafka proves who it is and checks whom it talks to; empty where Kafka is in plain text."""
    config: dict[str, Any] = {}
    if settings.kafka_security_protocol != "PLAINTEXT":
        config["security.protocol"] = settings.kafka_security_protocol
    if settings.kafka_security_protocol.startswith("SASL_"):
        config["sasl.mechanism"] = settings.kafka_sasl_mechanism
        config["sasl.username"] = settings.kafka_sasl_username
        config["sasl.password"] = settings.kafka_sasl_password.get_secret_value()
    if settings.kafka_security_protocol.endswith("SSL"):
        if settings.kafka_ssl_ca_location:
            config["ssl.ca.location"] = settings.kafka_ssl_ca_location
        config["ssl.endpoint.identification.algorithm"] = "https"
    return config


def ssl_context(settings: Settings) -> ssl.SSLContext | None:
    """The same for clients that take Python's own: certificate and host name are checked. None without TLS."""
    if not settings.kafka_security_protocol.endswith("SSL"):
        return None
    return ssl.create_default_context(cafile=settings.kafka_ssl_ca_location or None)


def _watched(client_id: str) -> dict[str, Any]:
    return {"statistics.interval.ms": INTERVAL_MS, "stats_cb": BrokerWatch(client_id)}


def build_producer(settings: Settings, client_id: str, *, queue_bytes: int = 64 * 1024 * 1024) -> Producer:
    """An idempotent producer that places keys as Java clients and aiokafka do.

    queue_bytes: of records that the broker has not acknowledged; beyond that it takes none.
    """
    return Producer(
        {
            **client_config(settings, client_id),
            **_watched(client_id),
            "enable.idempotence": True,
            "acks": "all",
            "linger.ms": 0,
            "partitioner": "murmur2_random",
            "compression.type": "none",
            "message.max.bytes": MAX_RECORD_BYTES,
            # A topic's max.message.bytes holds for a whole batch: a burst must not be packed into a larger one.
            "batch.size": MAX_MESSAGE_BYTES // 2,
            "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
            "queue.buffering.max.kbytes": queue_bytes // 1024,
        }
    )


def build_consumer(
    settings: Settings,
    client_id: str,
    *,
    group: str | None,
    on_error: Callable[[KafkaError], None] | None = None,
    **overrides: Any,
) -> Consumer:
    """A consumer that commits only what its stage says. `group=None` is for `assign()` alone.

    Its poll() raises Unavailable when it has lost its brokers for good: then another one must be built.
    """
    config = {
        **client_config(settings, client_id),
        **_watched(client_id),
        # A group id is required even where no group is joined and nothing is committed.
        "group.id": group if group is not None else f"groupless-{client_id}",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": "cooperative-sticky",
        "session.timeout.ms": settings.kafka_session_timeout_ms,
        "heartbeat.interval.ms": max(settings.kafka_session_timeout_ms // 6, 200),
        "max.poll.interval.ms": 120_000,
        "fetch.wait.max.ms": 100,
        "fetch.error.backoff.ms": 50,
        "fetch.message.max.bytes": MAX_RECORD_BYTES,
        "queued.max.messages.kbytes": 16 * 1024,
        "topic.metadata.refresh.interval.ms": 10_000,
        "enable.partition.eof": False,
        **overrides,
    }
    if on_error is not None:
        config["error_cb"] = on_error
    return Consumer(config)


def build_admin(settings: Settings, client_id: str = "vlastream-admin") -> AdminClient:
    return AdminClient(client_config(settings, client_id))


def check_consumed(message: Message) -> bool:
    """True for a record, False for an event to pass over. Raises Fatal where the consumer cannot go on."""
    error = message.error()
    if error is None:
        return True
    if error.fatal():
        raise Fatal(f"Kafka consumer failed: {error.str()}")
    if error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise Fatal(f"{error.str()}: may this role's user read it? `vlastream topics apply --acls` grants it")
    return False


def partition_count(consumer: Consumer, topic: str, timeout_s: float = 5.0) -> int:
    """Partitions of a topic. Raises Unavailable while Kafka is away, Fatal for a topic that is not there."""
    try:
        found = consumer.list_topics(topic, timeout=timeout_s).topics[topic]
    except KafkaException as error:
        raise Unavailable(f"Kafka does not answer: {error.args[0].str()}") from error
    if found.error is not None and found.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise Fatal(
            f"this user may not see {topic}: `vlastream topics apply --acls` grants it to the roles that need it"
        )
    if found.error is not None or not found.partitions:
        raise Fatal(f"topic {topic} does not exist: run `vlastream topics apply`")
    return len(found.partitions)


def end_positions(consumer: Consumer, topic: str, timeout_s: float = 5.0) -> dict[int, int]:
    """End offset of every partition of a topic. Raises as `partition_count` does."""
    end = time.monotonic() + timeout_s
    ends: dict[int, int] = {}
    for partition in range(partition_count(consumer, topic, timeout_s)):
        while partition not in ends:
            try:
                ends[partition] = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=1.0)[1]
            except KafkaException as error:
                # A partition that was just created, or whose broker just came back, has no leader for a moment.
                if time.monotonic() >= end:
                    raise Unavailable(f"{topic}/{partition} cannot be read: {error.args[0].str()}") from error
                time.sleep(0.05)
    return ends


def wait_for_kafka(settings: Settings, timeout_s: float = 30.0) -> None:
    """Return once a broker answers. Raises Unavailable after `timeout_s`."""
    admin = build_admin(settings)
    end = time.monotonic() + timeout_s
    while True:
        try:
            admin.list_topics(timeout=min(2.0, timeout_s))
            return
        except KafkaException as error:
            if time.monotonic() >= end:
                where = settings.kafka_bootstrap_servers
                raise Unavailable(f"no Kafka broker answers at {where}: {error.args[0].str()}") from error


__all__ = [
    "DELIVERY_TIMEOUT_S",
    "MAX_MESSAGE_BYTES",
    "MAX_RECORD_BYTES",
    "Record",
    "build_admin",
    "build_consumer",
    "build_producer",
    "check_consumed",
    "client_config",
    "end_positions",
    "partition_count",
    "record_of",
    "security_config",
    "ssl_context",
    "wait_for_kafka",
]
