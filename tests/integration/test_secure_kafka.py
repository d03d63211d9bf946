"""TLS, users and permissions on a real broker: each role and each fleet tries what is not its own."""

from __future__ import annotations

import time
from contextlib import closing

import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined] # re-exported without __all__

from ingest_api.console.letter_desk import LetterDesk
from runtime.acls import apply_acls
from runtime.broker_offsets import KafkaOffsets
from runtime.dead_letters import write_dead_letter
from runtime.errors import Fatal, Poison, Unavailable
from runtime.group_lag import GroupLag, watched_groups
from runtime.kafka import (
    Record,
    build_admin,
    build_consumer,
    build_producer,
    client_config,
)
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.security import StackSecurity
from runtime.topic_admin import declared_topics
from schemas.access import ROLES, Operation, Resource, fleet_user, role_grants
from schemas.card_files import load_cards
from schemas.headers import Source
from schemas.topics import OUTCOMES, REPLIES, RESULTS, replies_topic, requests_topic, worker_group
from tests.secure_kafka import DEPLOYMENT, NORTH, SOUTH, SecureKafka

pytestmark = pytest.mark.kafka


def written(settings: Settings, topics: list[str]) -> set[str]:
    """Topics that took a record of this user; each of the others refused it for want of permission."""
    taken: set[str] = set()
    refused: dict[str, KafkaError] = {}
    # Not ours, which is idempotent: to who may write nowhere at all the broker gives no producer's id for that.
    producer = Producer({**client_config(settings, "writer"), "acks": "all"})
    for topic in topics:

        def report(error: KafkaError | None, message: object, topic: str = topic) -> None:
            if error is None:
                taken.add(topic)
            else:
                refused[topic] = error

        # A tombstone does no harm where a view or the gate's table is built from the topic.
        producer.produce(topic, None, key=b"tried", on_delivery=report)
    assert producer.flush(30) == 0
    assert {error.code() for error in refused.values()} <= {KafkaError.TOPIC_AUTHORIZATION_FAILED}
    assert taken | set(refused) == set(topics)
    return taken


def read(settings: Settings, topics: list[str]) -> set[str]:
    """Topics of which this user gets a record; all hold one. The others refuse it, or do not even show."""
    given: set[str] = set()
    refused = set(topics) - set(build_admin(settings).list_topics(timeout=10).topics)
    end = time.monotonic() + 60
    with closing(build_consumer(settings, "reader", group=None)) as consumer:
        consumer.assign([TopicPartition(topic, 0, 0) for topic in set(topics) - refused])
        while given | refused != set(topics):
            assert time.monotonic() < end, f"neither read nor refused: {set(topics) - given - refused}"
            message = consumer.poll(1.0)
            if message is None:
                continue
            error = message.error()
            if error is None:
                given.add(message.topic() or "")
            elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                refused.add(message.topic() or "")
    return given


@pytest.fixture(scope="module")
def topics(secure_kafka: SecureKafka) -> list[str]:
    """All topics, each with a record in partition 0."""
    names = [topic.name for topic in declared_topics(secure_kafka.admin)]
    producer = build_producer(secure_kafka.admin, "filler")
    for name in names:
        producer.produce(name, None, key=b"there", partition=0)
    assert producer.flush(30) == 0
    return names


@pytest.mark.parametrize("role", [access.role for access in ROLES])
def test_a_role_reads_and_writes_its_topics_and_no_other(
    secure_kafka: SecureKafka, topics: list[str], role: str
) -> None:
    settings = secure_kafka.as_user(role)
    grants = [grant for grant in role_grants((NORTH, SOUTH), [DEPLOYMENT]) if grant.user == role]
    for operation, done in ((Operation.WRITE, written), (Operation.READ, read)):
        of_topics = {g.name for g in grants if g.operation is operation and g.resource is Resource.TOPIC}
        assert done(settings, topics) == of_topics, f"{role} may {operation} something else than the table says"


@pytest.mark.parametrize("role", [access.role for access in ROLES])
def test_a_role_gets_at_its_own_consumer_groups_and_no_other(secure_kafka: SecureKafka, role: str) -> None:
    grants = role_grants((NORTH, SOUTH), [DEPLOYMENT])
    of_groups = [grant for grant in grants if grant.resource is Resource.GROUP]
    own = {grant.name for grant in of_groups if grant.user == role}
    admin = build_admin(secure_kafka.as_user(role))
    for group in {grant.name for grant in of_groups} | {"fleet.north.robots"}:
        (answer,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
        if group in own:
            assert answer.result(20).group_id == group
        else:
            with pytest.raises(KafkaException) as refusal:
                answer.result(20)
            assert refusal.value.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED


def test_who_may_see_a_groups_offsets_may_not_move_join_or_delete_it(
    secure_kafka: SecureKafka, topics: list[str]
) -> None:
    grants = role_grants((NORTH, SOUTH), [DEPLOYMENT])
    seen = [g for g in grants if g.operation is Operation.DESCRIBE and g.resource is Resource.GROUP]
    assert {grant.user for grant in seen} == {"api"}
    # There is something to move and to delete.
    operator = build_admin(secure_kafka.admin)
    for grant in seen:
        place = ConsumerGroupTopicPartitions(grant.name, [TopicPartition(OUTCOMES, 0, 1)])
        _begin(operator, place)
    settings = secure_kafka.as_user("api")
    admin = build_admin(settings)
    for grant in seen:
        (answer,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(grant.name)]).values()
        places = {(p.topic, p.partition): p.offset for p in answer.result(20).topic_partitions or []}
        assert places[OUTCOMES, 0] == 1
        moved = ConsumerGroupTopicPartitions(grant.name, [TopicPartition(OUTCOMES, 0, 0)])
        (refused,) = admin.alter_consumer_group_offsets([moved]).values()
        errors = [p.error.code() for p in refused.result(20).topic_partitions or [] if p.error is not None]
        assert errors == [KafkaError.GROUP_AUTHORIZATION_FAILED]
        (kept,) = admin.delete_consumer_groups([grant.name]).values()
        with pytest.raises(KafkaException, match="GROUP_AUTHORIZATION_FAILED"):
            kept.result(20)
        with closing(build_consumer(settings, "guest", group=grant.name)) as consumer:
            consumer.subscribe([REPLIES])
            with pytest.raises(KafkaException, match="GROUP_AUTHORIZATION_FAILED"):
                _join(consumer)


def _begin(operator: AdminClient, place: ConsumerGroupTopicPartitions, timeout_s: float = 90) -> None:
    """Commit as a group that nobody is in: a process that another test has killed is in it until its session ends."""
    end = time.monotonic() + timeout_s
    while True:
        (done,) = operator.alter_consumer_group_offsets([place]).values()
        refused = [one.error for one in done.result(20).topic_partitions or [] if one.error is not None]
        if not refused:
            return
        assert time.monotonic() < end, refused
        time.sleep(0.5)


def _join(consumer: Consumer, timeout_s: float = 60) -> None:
    """Until it is a member of its group. Raises KafkaException where it is not let in."""
    end = time.monotonic() + timeout_s
    while not consumer.assignment():
        assert time.monotonic() < end, "neither let in nor refused"
        message = consumer.poll(0.5)
        if message is not None and message.error() is not None:
            raise KafkaException(message.error())


def test_the_api_sees_how_far_the_others_are_and_reads_none_of_their_records(
    secure_kafka: SecureKafka, topics: list[str]
) -> None:
    settings = secure_kafka.as_user("api")
    offsets = KafkaOffsets(build_admin(settings), lambda group: build_consumer(settings, "lag", group=group))
    lag = GroupLag(
        offsets=offsets,
        groups=watched_groups(load_cards(settings.cards_dir), settings.fleets),
        metrics=Metrics(),
    )
    lag.look()
    assert lag.age_s < float("inf"), "the broker refused to tell"
    workers = lag.of(worker_group(DEPLOYMENT))
    assert workers is not None
    assert workers.records >= 1
    assert workers.oldest_age_s is not None
    assert 0 < workers.oldest_age_s < 3600
    offsets.close()


def test_no_role_may_change_permissions_or_topics(secure_kafka: SecureKafka) -> None:
    settings = secure_kafka.as_user("gate")
    with pytest.raises(Fatal, match="does not let us change permissions"):
        apply_acls(settings, settings.fleets)
    admin = build_admin(settings)
    with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
        admin.delete_topics([OUTCOMES])[OUTCOMES].result(20)
    with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
        admin.create_topics([NewTopic("own", 1)])["own"].result(20)


@pytest.mark.parametrize("fleet", [NORTH, SOUTH])
def test_a_fleet_reads_and_writes_its_topics_and_no_other(
    secure_kafka: SecureKafka, topics: list[str], fleet: str
) -> None:
    settings = secure_kafka.as_user(fleet_user(fleet))
    assert written(settings, topics) == {requests_topic(fleet), f"vla.episodes.{fleet}.v1"}
    assert read(settings, topics) == {replies_topic(fleet)}
    seen = set(build_admin(settings).list_topics(timeout=10).topics)
    assert seen == {requests_topic(fleet), f"vla.episodes.{fleet}.v1", replies_topic(fleet)}, "others do not even show"


def test_nobody_gets_in_without_the_right_password_or_in_plain_text(secure_kafka: SecureKafka) -> None:
    for changed in ({"kafka_sasl_password": "guess"}, {"kafka_security_protocol": "PLAINTEXT"}):
        settings = Settings.model_validate({**secure_kafka.as_user("gate").model_dump(), **changed})
        with pytest.raises(KafkaException):
            build_admin(settings).list_topics(timeout=2)


def test_a_server_with_a_certificate_of_somebody_else_is_not_talked_to(
    secure_kafka: SecureKafka, own_layout: Layout
) -> None:
    other = StackSecurity(own_layout)
    other.prepare()
    config = {**client_config(secure_kafka.admin, "careful"), "ssl.ca.location": str(other.certificates.ca)}
    with pytest.raises(KafkaException):
        AdminClient(config).list_topics(timeout=2)


async def test_the_console_reads_dead_letters_and_sends_them_again_and_the_api_itself_does_not(
    secure_kafka: SecureKafka, topics: list[str]
) -> None:
    publisher = Publisher(build_producer(secure_kafka.as_user("gate"), "bury"), Metrics())
    record = Record(RESULTS, 1, 7, b"arm-1", b"no completion", 5)
    error = Poison("undecodable", "made for a test")
    write_dead_letter(publisher, Metrics(), record, reason="undecodable", stage="decode", group="test", error=error)
    publisher.close(10)
    desk = LetterDesk(secure_kafka.as_user("console"))
    pile = await desk.pile(RESULTS)
    assert {OUTCOMES, RESULTS, requests_topic(NORTH)} <= set(pile.topics)
    place = next(entry.place for entry in pile.entries if entry.reason == "undecodable")
    letters, cluster = await desk.at([place, Source(place.topic, place.partition, place.offset + 1000)])
    assert [letter.value for letter in letters] == [b"no completion"]
    (sent,) = await desk.send(letters, cluster)
    assert isinstance(sent, Source)
    assert (sent.topic, sent.partition) == (RESULTS, 1)
    with pytest.raises(Unavailable):
        await LetterDesk(secure_kafka.as_user("api")).pile(RESULTS)
