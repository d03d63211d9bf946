"""TLS, users and permissions on a real broker: each role and each fleet tries what is not its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import confluent_kafka
import pytest
from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined] # re-exported without __all__

from ingest_api.console.letter_desk import LetterDesk
from robot_client import Observation, RobotClient
from robot_client.kafka import KafkaTransport
from runtime.acls import apply_acls
from runtime.dead_letters import write_dead_letter
from runtime.errors import Fatal, Poison, Unavailable
from runtime.fleets.commands import add_fleet, list_fleets, remove_fleet
from runtime.kafka import (
    Record,
    build_admin,
    build_consumer,
    build_producer,
    client_config,
    end_positions,
    security_config,
)
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.stack.kafka import QUICK_START, Kafka
from runtime.stack.layout import Layout
from runtime.stack.security import StackSecurity
from runtime.topic_admin import apply_all, declared_topics
from schemas import headers as h
from schemas.access import ROLES, Operation, Resource, fleet_user, role_grants
from schemas.headers import Source
from schemas.messages import InferenceRequest, Outcome
from schemas.topics import OUTCOMES, RESULTS, replies_topic, requests_topic
from tests.embedded import running
from tests.fleet_log import InstantWorker, request
from tests.integration.test_gate_takeover import GateProcess, wait_until_ready
from tests.integration.test_request_reply import card_folder
from tests.pictures import jpeg

pytestmark = pytest.mark.kafka

#: The fleets that this broker begins with; what one of them tries is done to the other.
NORTH, SOUTH = "north", "south"
DEPLOYMENT = "test-model-a"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class SecureKafka:
    admin: Settings
    security: StackSecurity

    def as_user(self, user: str, password: str | None = None) -> Settings:
        """Settings of a process that says it is this user."""
        identity = self.security.kafka_settings(user) if password is None else {}
        changed = {"kafka_sasl_username": user, "kafka_sasl_password": password or identity["kafka_sasl_password"]}
        return Settings.model_validate({**self.admin.model_dump(), **changed})


@pytest.fixture(scope="module")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    folder = tmp_path_factory.mktemp("secure")
    layout = Layout(folder / "servers")
    layout.create()
    security = StackSecurity(layout, (NORTH, SOUTH))
    broker = Kafka(layout, QUICK_START, security)
    with running(broker, layout):
        admin = Settings.model_validate(
            {
                "kafka_bootstrap_servers": broker.bootstrap,
                "cards_dir": card_folder(folder / "cards"),
                "fleets": f"{NORTH},{SOUTH}",
                "stack_file": folder / "no-stack.json",
                **security.kafka_settings("admin"),
            }
        )
        apply_all(admin, acls=True)
        yield SecureKafka(admin, security)


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
def topics(kafka: SecureKafka) -> list[str]:
    """All topics, each with a record in partition 0."""
    names = [topic.name for topic in declared_topics(kafka.admin)]
    producer = build_producer(kafka.admin, "filler")
    for name in names:
        producer.produce(name, None, key=b"there", partition=0)
    assert producer.flush(30) == 0
    return names


@pytest.mark.parametrize("role", [access.role for access in ROLES])
def test_a_role_reads_and_writes_its_topics_and_no_other(kafka: SecureKafka, topics: list[str], role: str) -> None:
    settings = kafka.as_user(role)
    grants = [grant for grant in role_grants((NORTH, SOUTH), [DEPLOYMENT]) if grant.user == role]
    for operation, done in ((Operation.WRITE, written), (Operation.READ, read)):
        of_topics = {g.name for g in grants if g.operation is operation and g.resource is Resource.TOPIC}
        assert done(settings, topics) == of_topics, f"{role} may {operation} something else than the table says"


@pytest.mark.parametrize("role", [access.role for access in ROLES])
def test_a_role_gets_at_its_own_consumer_groups_and_no_other(kafka: SecureKafka, role: str) -> None:
    grants = role_grants((NORTH, SOUTH), [DEPLOYMENT])
    groups = {grant.name: grant.user for grant in grants if grant.resource is Resource.GROUP}
    groups["fleet.north.robots"] = fleet_user(NORTH)
    admin = build_admin(kafka.as_user(role))
    for group, owner in groups.items():
        (answer,) = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)]).values()
        if owner == role:
            assert answer.result(20).group_id == group
        else:
            with pytest.raises(KafkaException) as refusal:
                answer.result(20)
            assert refusal.value.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED


def test_no_role_may_change_permissions_or_topics(kafka: SecureKafka) -> None:
    settings = kafka.as_user("gate")
    with pytest.raises(Fatal, match="does not let us change permissions"):
        apply_acls(settings, settings.fleets)
    admin = build_admin(settings)
    with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
        admin.delete_topics([OUTCOMES])[OUTCOMES].result(20)
    with pytest.raises(KafkaException, match="AUTHORIZATION_FAILED"):
        admin.create_topics([NewTopic("own", 1)])["own"].result(20)


@pytest.mark.parametrize("fleet", [NORTH, SOUTH])
def test_a_fleet_reads_and_writes_its_topics_and_no_other(kafka: SecureKafka, topics: list[str], fleet: str) -> None:
    settings = kafka.as_user(fleet_user(fleet))
    assert written(settings, topics) == {requests_topic(fleet), f"vla.episodes.{fleet}.v1"}
    assert read(settings, topics) == {replies_topic(fleet)}
    seen = set(build_admin(settings).list_topics(timeout=10).topics)
    assert seen == {requests_topic(fleet), f"vla.episodes.{fleet}.v1", replies_topic(fleet)}, "others do not even show"


def test_nobody_gets_in_without_the_right_password_or_in_plain_text(kafka: SecureKafka) -> None:
    for changed in ({"kafka_sasl_password": "guess"}, {"kafka_security_protocol": "PLAINTEXT"}):
        settings = Settings.model_validate({**kafka.as_user("gate").model_dump(), **changed})
        with pytest.raises(KafkaException):
            build_admin(settings).list_topics(timeout=2)


def test_a_server_with_a_certificate_of_somebody_else_is_not_talked_to(kafka: SecureKafka, own_layout: Layout) -> None:
    other = StackSecurity(own_layout)
    other.prepare()
    config = {**client_config(kafka.admin, "careful"), "ssl.ca.location": str(other.certificates.ca)}
    with pytest.raises(KafkaException):
        AdminClient(config).list_topics(timeout=2)


@contextmanager
def gate_of(kafka: SecureKafka, folder: Path) -> Iterator[GateProcess]:
    """A real gate, as its own user."""
    settings = kafka.as_user("gate")
    environment = {
        "KAFKA_BOOTSTRAP_SERVERS": settings.kafka_bootstrap_servers,
        "CARDS_DIR": str(settings.cards_dir),
        "DATA_DIR": str(folder),
        "FLEETS": ",".join(settings.fleets),
        "KAFKA_SESSION_TIMEOUT_MS": "3000",
        **{name.upper(): value for name, value in kafka.security.kafka_settings("gate").items()},
    }
    gate = GateProcess(environment, 0, folder / "gate.log")
    try:
        wait_until_ready(gate)
        yield gate
    finally:
        gate.end(signal.SIGKILL)


class Listener:
    """Everything that arrives on a topic from now on."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._consumer: Consumer = build_consumer(settings, "listener", group=None)
        ends = end_positions(self._consumer, topic)
        self._consumer.assign([TopicPartition(topic, partition, end) for partition, end in ends.items()])

    def wait_for(self, request_id: str, timeout_s: float = 60) -> tuple[dict[str, str], Outcome]:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            found = self._poll(0.5)
            if found is not None and found[1].request.request_id == request_id:
                return found
        raise AssertionError("it never came")

    def nothing_more(self) -> bool:
        """Whether nothing lies behind what was read."""
        return self._poll(1.0) is None

    def close(self) -> None:
        self._consumer.close()

    def _poll(self, timeout_s: float) -> tuple[dict[str, str], Outcome] | None:
        message = self._consumer.poll(timeout_s)
        if message is None or message.error() is not None:
            return None
        headers = h.decode(message.headers())  # type: ignore[arg-type] # the stub lacks bytes
        return headers, Outcome.FromString(message.value() or b"")


@pytest.mark.slow
def test_a_fleet_that_is_added_is_served_and_one_that_is_removed_is_shut_out(
    kafka: SecureKafka, tmp_path: Path
) -> None:
    said: list[str] = []
    options = {"bytes_per_s": 5e6, "request_percent": 50.0, "who": "test"}
    add_fleet(kafka.admin, "east", say=said.append, **options)  # type: ignore[arg-type] # of mixed types
    assert any("restart these roles" in line for line in said)
    assert not any(line.startswith("password") for line in said), "no gate reads its topics yet"
    assert [line.split()[0] for line in list_fleets(kafka.admin)] == [NORTH, SOUTH, "east"]
    apply_all(kafka.admin, acls=True)  # takes nothing away from a registered fleet

    with InstantWorker(kafka.admin), gate_of(kafka, tmp_path):
        add_fleet(kafka.admin, "east", restarted=True, say=said.append, **options)  # type: ignore[arg-type]
        words = dict(line.split()[:2] for line in said if line.startswith(("username", "password")))
        assert words["username"] == "fleet.east"
        east = kafka.as_user("fleet.east", words["password"])
        transport = KafkaTransport(
            east.kafka_bootstrap_servers, fleet="east", robot_id="arm-1", security=security_config(east)
        )
        with RobotClient(transport, robot_id="arm-1", robot_type="test_arm") as robot:
            seen = Observation(images={"base": jpeg()}, state=[0.5, 0.5], instruction="pick up the red block")
            chunk = robot.infer(seen, ttl_ms=10_000)
        assert chunk.actions.shape == (1, 3)
        remove_fleet(kafka.admin, "east", delete_topics=True, wait_s=60, say=said.append)
    with pytest.raises(KafkaException):
        build_admin(east).list_topics(timeout=2)
    assert "east" not in "".join(list_fleets(kafka.admin))
    assert requests_topic("east") not in build_admin(kafka.admin).list_topics(timeout=10).topics
    with pytest.raises(Fatal, match="no registered fleet"):
        remove_fleet(kafka.admin, "east", delete_topics=True, wait_s=1, say=said.append)


@pytest.fixture(scope="module")
def served(kafka: SecureKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    """The same broker with a worker that answers at once, and a gate that knows of it when it is ready."""
    with InstantWorker(kafka.admin), gate_of(kafka, tmp_path_factory.mktemp("gate")):
        yield kafka


@pytest.mark.slow
def test_what_a_fleet_writes_into_headers_makes_it_nobody_else_and_sends_its_answer_nowhere_else(
    served: SecureKafka,
) -> None:
    kafka, south = served, served.as_user(fleet_user(SOUTH))
    asked = request(1, robot_id="arm-1", picture=jpeg())
    with (
        closing(Listener(south, replies_topic(SOUTH))) as own,
        closing(Listener(kafka.admin, replies_topic(NORTH))) as others,
        closing(Listener(kafka.admin, OUTCOMES)) as log,
    ):
        forged: dict[str, str | int] = {
            h.CUSTOMER_ID: NORTH,
            h.CONSENT_TIER: "full",
            h.REPLY_TOPIC: replies_topic(NORTH),
            h.REPLY_PARTITION: 0,
            h.DEADLINE_MS: 2**50,
            h.CORRELATION_ID: asked.request_id,
        }
        deliver(south, asked, forged)
        headers, answer = own.wait_for(asked.request_id)
        assert headers[h.CORRELATION_ID] == asked.request_id
        assert answer.HasField("chunk"), answer.rejection
        _, outcome = log.wait_for(asked.request_id)
        assert outcome.request.customer_id == SOUTH
        assert outcome.request.consent_tier == "none"
        assert outcome.request.deadline_ms < 2**50
        assert others.nothing_more()


@pytest.fixture(scope="session")
def cpp_robot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in C++, compiled; skips where this machine cannot."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    probe = [compiler, "-E", "-x", "c++", "-"]
    if subprocess.run(probe, input=b"#include <librdkafka/rdkafkacpp.h>\n", capture_output=True).returncode:
        pytest.skip("librdkafka's headers are not installed (Debian: librdkafka-dev)")
    program = tmp_path_factory.mktemp("cpp") / "fleet_robot"
    make = ["make", "-C", str(ROOT / "examples" / "cpp"), f"CXX={compiler}", "CXXFLAGS=-O0", f"OUT={program}"]
    made = subprocess.run(make, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return program


@pytest.mark.slow
def test_a_robot_in_cpp_is_answered_and_hears_refusals(served: SecureKafka, cpp_robot: Path, tmp_path: Path) -> None:
    south = served.as_user(fleet_user(SOUTH))
    properties, image = tmp_path / "fleet.properties", tmp_path / "look.jpg"
    connection = {"bootstrap.servers": south.kafka_bootstrap_servers, **security_config(south)}
    properties.write_text("".join(f"{name}={value}\n" for name, value in connection.items()))
    image.write_bytes(jpeg())

    def ask(fleet: str, instruction: str, ttl_ms: int = 10_000) -> subprocess.CompletedProcess[str]:
        look = ["test_arm", "base", str(image), "0.5,0.5", instruction, str(ttl_ms)]
        command = [str(cpp_robot), str(properties), fleet, "cpp-arm", *look]
        # Debian's librdkafka 2.0 fails at SCRAM with today's brokers; the C library of the Python package does not.
        (library,) = (Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs").glob("librdkafka-*.so.1")
        newer = tmp_path / "librdkafka.so.1"
        newer.unlink(missing_ok=True)
        newer.symlink_to(library)
        environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
        return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)

    answered = ask(SOUTH, "pick up the red block")
    assert answered.returncode == 0, answered.stdout + answered.stderr
    assert answered.stdout.startswith("actions 1x3")
    assert answered.stdout.rstrip().endswith("0.01 0 0")
    refused = ask(SOUTH, "red")
    assert (refused.returncode, refused.stdout.split(":")[0]) == (1, "refused"), refused.stdout + refused.stderr
    foreign = ask(NORTH, "pick up the red block")
    assert foreign.returncode == 2
    assert "was the fleet added?" in foreign.stderr or "authorization" in foreign.stderr.lower(), foreign.stderr


def deliver(settings: Settings, asked: InferenceRequest, headers: dict[str, str | int]) -> None:
    producer: Producer = build_producer(settings, "robot")
    failures: list[KafkaError] = []
    producer.produce(
        requests_topic(SOUTH),
        asked.SerializeToString(),
        key=asked.robot_id,
        headers=list(h.encode(headers)),
        on_delivery=lambda error, _: failures.append(error) if error else None,
    )
    assert producer.flush(30) == 0
    assert not failures


async def test_the_console_reads_dead_letters_and_sends_them_again_and_the_api_itself_does_not(
    kafka: SecureKafka, topics: list[str]
) -> None:
    publisher = Publisher(build_producer(kafka.as_user("gate"), "bury"), Metrics())
    record = Record(RESULTS, 1, 7, b"arm-1", b"no completion", 5)
    error = Poison("undecodable", "made for a test")
    write_dead_letter(publisher, Metrics(), record, reason="undecodable", stage="decode", group="test", error=error)
    publisher.close(10)
    desk = LetterDesk(kafka.as_user("console"))
    pile = await desk.pile(RESULTS)
    assert {OUTCOMES, RESULTS, requests_topic(NORTH)} <= set(pile.topics)
    place = next(entry.place for entry in pile.entries if entry.reason == "undecodable")
    letters, cluster = await desk.at([place, Source(place.topic, place.partition, place.offset + 1000)])
    assert [letter.value for letter in letters] == [b"no completion"]
    (sent,) = await desk.send(letters, cluster)
    assert isinstance(sent, Source)
    assert (sent.topic, sent.partition) == (RESULTS, 1)
    with pytest.raises(Unavailable):
        await LetterDesk(kafka.as_user("api")).pile(RESULTS)
