"""Every topic, declared once, in the order of the flow. `vlastream topics apply` creates them; no client does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from schemas.cards import valid_name

#: Largest Kafka record that any stage accepts: 512 KiB of images, and room for the rest of the message.
MAX_MESSAGE_BYTES = 640 * 1024
#: Inline images of one request together.
MAX_INLINE_IMAGE_BYTES = 512 * 1024

REQUESTS = "vla.requests.v1"
RESULTS = "vla.results.v1"
REPLIES = "vla.replies.v1"
OUTCOMES = "vla.outcomes.v1"
WORKERS = "vla.workers.v1"
CONTROL = "vla.control.v1"
CONSENT = "vla.consent.v1"
EMBODIMENTS = "vla.embodiments.v1"
TRAFFIC = "vla.traffic.v1"
CUSTOMERS = "vla.customers.v1"
AUDIT = "vla.audit.v1"
FLEETS = "vla.fleets.v1"
EPISODES = "vla.episodes.v1"
FEEDBACK = "vla.feedback.v1"
EMBEDDINGS = "vla.embeddings.v1"
QUERIES = "vla.queries.v1"
#: Faust names a table's changelog <app id>-<table>-changelog.
GATE_APP = "vla-gate"
GATE_TABLE = "requests"
GATE_CHANGELOG = f"{GATE_APP}-{GATE_TABLE}-changelog"
DEAD_LETTER_SUFFIX = ".dlq"
#: Consumer groups. The gate's is its app.
POSTGRES_GROUP = "sink-postgres"
PARQUET_GROUP = "sink-parquet"
EMBEDDER_GROUP = "vla-embedder"

#: Anchored, so that a pattern subscription never takes in a dead letter topic.
ACCEPTED_PATTERN = r"^vla\.accepted\.[a-z0-9-]+\.v1$"

FLEET_REQUESTS_PATTERN = r"^vla\.requests\.([a-z0-9-]+)\.v1$"

_MINUTE_MS = 60_000
_DAY_MS = 24 * 60 * _MINUTE_MS
#: For so long every stop, consent and change of traffic can be read, not only the last one of each key.
_CONTROL_HISTORY_DAYS = 90
#: Beyond that the table audit_log has it.
_AUDIT_DAYS = 365


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """One topic: its key, the message in its value, and how the broker keeps it."""

    name: str
    key: str
    message: str
    partitions: int
    retention_ms: int
    cleanup_policy: str = "delete"
    max_message_bytes: int = MAX_MESSAGE_BYTES
    config: dict[str, str] = field(default_factory=dict)

    def broker_config(self) -> dict[str, str]:
        """Topic configuration as the broker takes it. Times are the broker's: robot clocks lie."""
        return {
            "retention.ms": str(self.retention_ms),
            "cleanup.policy": self.cleanup_policy,
            "max.message.bytes": str(self.max_message_bytes),
            "message.timestamp.type": "LogAppendTime",
            **self.config,
        }


def requests_topic(fleet: str | None = None) -> str:
    """Topic that requests enter by: the API's own, or that of a fleet which produces directly."""
    return REQUESTS if fleet is None else f"vla.requests.{_checked(fleet)}.v1"


def replies_topic(fleet: str | None = None) -> str:
    return REPLIES if fleet is None else f"vla.replies.{_checked(fleet)}.v1"


def episodes_topic(fleet: str | None = None) -> str:
    """Topic of starts and ends of episodes: the API's own, or that of a fleet which produces directly."""
    return EPISODES if fleet is None else f"vla.episodes.{_checked(fleet)}.v1"


def accepted_topic(deployment: str) -> str:
    return f"vla.accepted.{_checked(deployment)}.v1"


def worker_group(deployment: str) -> str:
    """Consumer group of a deployment's workers."""
    return f"gpu.{deployment}"


def dead_letter_topic(topic: str) -> str:
    return topic + DEAD_LETTER_SUFFIX


def declare(
    *,
    fleets: Iterable[str],
    deployments: Iterable[str],
    partitions: int,
    accepted_partitions: int,
    reply_partitions: int,
    retention_days: int = 7,
) -> tuple[Topic, ...]:
    """All topics of an installation in flow order, each dead letter topic behind its own.

    requests (of the API and of each fleet), results and outcomes have equal partition counts, so that
    the two agents of the gate share one table partition for each robot.
    """
    log = retention_days * _DAY_MS
    fleet_list = list(fleets)

    def flow() -> Iterator[Topic]:
        def keyed(name: str, message: str, count: int = partitions, retention_ms: int = log) -> Topic:
            return Topic(name=name, key="robot_id", message=message, partitions=count, retention_ms=retention_ms)

        def view(name: str, key: str, message: str, segment_minutes: int = 60, keep_days: int = 0) -> Topic:
            return Topic(
                name=name,
                key=key,
                message=message,
                partitions=1,
                retention_ms=-1,
                cleanup_policy="compact",
                config={
                    "segment.ms": str(segment_minutes * _MINUTE_MS),
                    "min.cleanable.dirty.ratio": "0.1",
                    # Younger records stay although a newer one of their key has superseded them.
                    "min.compaction.lag.ms": str(keep_days * _DAY_MS),
                },
            )

        yield keyed(REQUESTS, "InferenceRequest")
        for fleet in fleet_list:
            yield keyed(requests_topic(fleet), "InferenceRequest")
        yield Topic(
            name=GATE_CHANGELOG,
            key="row_id or robot",
            message="TableValue",
            partitions=partitions,
            # A gate that takes a partition over reads its changelog first, while robots wait: superseded rows and
            # tombstones leave within minutes. An undecided row is of use as long as its request lies in the log.
            retention_ms=log,
            cleanup_policy="compact,delete",
            config={
                "segment.ms": str(_MINUTE_MS),
                "segment.bytes": str(16 * 1024 * 1024),
                "min.cleanable.dirty.ratio": "0.1",
                "delete.retention.ms": str(_MINUTE_MS),
            },
        )
        for deployment in deployments:
            yield keyed(accepted_topic(deployment), "InferenceRequest", accepted_partitions)
        yield keyed(EPISODES, "EpisodeEvent")
        for fleet in fleet_list:
            yield keyed(episodes_topic(fleet), "EpisodeEvent")
        yield keyed(RESULTS, "Completion")
        yield keyed(REPLIES, "Outcome", reply_partitions, 5 * _MINUTE_MS)
        for fleet in fleet_list:
            yield keyed(replies_topic(fleet), "Outcome", partitions, 5 * _MINUTE_MS)
        yield keyed(OUTCOMES, "Outcome")
        yield keyed(EMBEDDINGS, "Embedding")
        yield keyed(FEEDBACK, "Feedback")
        # Nobody waits for an answer longer than a request may take.
        yield Topic(
            name=QUERIES,
            key="none",
            message="EmbeddingQuery",
            partitions=partitions,
            retention_ms=5 * _MINUTE_MS,
        )
        yield view(CONSENT, "customer_id", "Consent", keep_days=_CONTROL_HISTORY_DAYS)
        yield view(CUSTOMERS, "customer_id", "Customer")
        # One partition: what was done has one order.
        yield Topic(
            name=AUDIT, key="customer_id", message="AuditEvent", partitions=1, retention_ms=_AUDIT_DAYS * _DAY_MS
        )
        yield view(EMBODIMENTS, "customer_id/robot_type", "OwnEmbodiment", keep_days=_CONTROL_HISTORY_DAYS)
        yield view(FLEETS, "fleet", "Fleet")
        yield view(WORKERS, "worker_id", "WorkerHeartbeat", segment_minutes=5)
        yield view(CONTROL, "target", "Control", keep_days=_CONTROL_HISTORY_DAYS)
        yield view(TRAFFIC, "model", "Traffic", keep_days=_CONTROL_HISTORY_DAYS)

    def with_dead_letters() -> Iterator[Topic]:
        for topic in flow():
            yield topic
            robots = topic.key == "robot_id" and not topic.name.startswith("vla.replies.")
            if robots or topic.name in (CONSENT, CONTROL, AUDIT):
                yield Topic(
                    name=dead_letter_topic(topic.name),
                    key="as the dead record",
                    message="as the dead record",
                    partitions=1,
                    retention_ms=30 * _DAY_MS,
                    # A dead record may be as large as the broker let in, and carries headers besides.
                    max_message_bytes=2 * 1024 * 1024,
                )

    return tuple(with_dead_letters())


def _checked(name: str) -> str:
    if not valid_name(name):
        raise ValueError(f"{name!r} cannot be part of a topic name: use a-z, 0-9 and '-', at most 63 characters")
    return name
