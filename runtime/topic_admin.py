"""`vlastream topics apply`: brings the broker's topics to what schemas/topics.py declares. Safe to repeat."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined] # re-exported without __all__
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewTopic,
    ResourceType,
)

from runtime.acls import AppliedAcls, apply_acls
from runtime.errors import Fatal
from runtime.fleets.registry import with_registered_fleets
from runtime.kafka import build_admin, wait_for_kafka
from runtime.settings import Settings
from schemas.card_files import load_cards
from schemas.topics import Topic, declare

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Applied:
    created: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)


def declared_topics(settings: Settings) -> tuple[Topic, ...]:
    cards = load_cards(settings.cards_dir)
    return declare(
        fleets=settings.fleets,
        deployments=[card.deployment for card in cards.models],
        partitions=settings.kafka_partitions,
        accepted_partitions=settings.kafka_accepted_partitions,
        reply_partitions=settings.kafka_reply_partitions,
        retention_days=settings.kafka_retention_days,
    )


def apply_all(settings: Settings, *, acls: bool) -> tuple[Applied, AppliedAcls | None]:
    """Topics of everything that is declared and of every registered fleet; with `acls` who may use them too."""
    wait_for_kafka(settings)
    known = with_registered_fleets(settings)
    applied = apply_topics(known)
    return applied, apply_acls(settings, known.fleets) if acls else None


def apply_topics(settings: Settings) -> Applied:
    """Create what is missing, correct the configuration of what is there.

    Raises Fatal where a topic exists with another partition count: adding partitions would move robots to
    other partitions while their requests are under way.
    """
    wait_for_kafka(settings)
    admin = build_admin(settings)
    topics = declared_topics(settings)
    existing = admin.list_topics(timeout=10).topics
    applied = Applied()
    for topic in topics:
        found = existing.get(topic.name)
        if found is not None and len(found.partitions) != topic.partitions:
            raise Fatal(
                f"{topic.name} has {len(found.partitions)} partitions, {topic.partitions} are declared: "
                "set KAFKA_PARTITIONS and its kin to what exists, or start with an empty cluster"
            )
    _create(admin, [t for t in topics if t.name not in existing], settings.kafka_replication_factor, applied)
    _correct(admin, [t for t in topics if t.name in existing], applied)
    return applied


def _create(admin: AdminClient, topics: list[Topic], replication_factor: int, applied: Applied) -> None:
    if not topics:
        return
    new = [
        NewTopic(t.name, num_partitions=t.partitions, replication_factor=replication_factor, config=t.broker_config())
        for t in topics
    ]
    for name, created in admin.create_topics(new).items():
        try:
            created.result(timeout=30)
            applied.created.append(name)
        except KafkaException as error:
            # Somebody else applied at the same time: what is there is what we wanted.
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise Fatal(f"topic {name} cannot be created: {error.args[0].str()}") from error


def _correct(admin: AdminClient, topics: list[Topic], applied: Applied) -> None:
    if not topics:
        return
    by_name = {topic.name: topic for topic in topics}
    described = admin.describe_configs([ConfigResource(ResourceType.TOPIC, name) for name in by_name])
    changes = []
    for resource, result in described.items():
        current = {name: entry.value for name, entry in result.result(timeout=30).items()}
        wanted = by_name[resource.name].broker_config()
        different = {name: value for name, value in wanted.items() if current.get(name) != value}
        if not different:
            applied.unchanged.append(resource.name)
            continue
        entries = [
            ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET) for name, value in different.items()
        ]
        changes.append(ConfigResource(ResourceType.TOPIC, resource.name, incremental_configs=entries))
    if changes:
        for resource, changed in admin.incremental_alter_configs(changes).items():
            changed.result(timeout=30)
            applied.changed.append(resource.name)
