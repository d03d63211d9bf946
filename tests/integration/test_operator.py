"""An operator's commands against a real broker and real gates: stop and resume, and dead letters."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka import Consumer, TopicPartition

from runtime.dead_letters import write_dead_letter
from runtime.dlq.replay import REPLAYED_FROM
from runtime.embodiments import RobotTypes, next_embodiment, publish_embodiment
from runtime.errors import Poison
from runtime.kafka import Record, build_consumer, build_producer, end_positions, record_of
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.stack.kafka import Kafka
from runtime.stack.layout import Layout
from runtime.topic_admin import apply_topics
from runtime.view import CompactedView
from schemas import headers as h
from schemas.card_files import load_cards
from schemas.cards import EmbodimentCard
from schemas.codes import Code
from schemas.ids import partition_of
from schemas.messages import Outcome, SafetyMode
from schemas.topics import CONTROL, EMBODIMENTS, OUTCOMES, REPLIES, REQUESTS, RESULTS, accepted_topic, dead_letter_topic
from tests import pictures
from tests.cards import model, write_cards
from tests.embedded import running
from tests.fleet_log import InstantWorker, OpenLoopLoad, request
from tests.integration.test_gate_takeover import gates, wait_until_ready
from tests.unit.test_own_robots import own, served

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
#: Stopped before the gates start.
LOCKED = "arm-9"
#: From the acknowledgement of a stop until no action reaches the robot.
STOP_HOLDS_AFTER_MS = 1000


@dataclass
class Installation:
    """A broker with all topics and two gates."""

    settings: Settings
    environment: dict[str, str]
    #: Requests of the locked robot that lay in the log when the gates started.
    early: set[str] = field(default_factory=set)

    def run(self, *arguments: str, status: int = 0) -> str:
        """One `vlastream` command; its whole output."""
        done = subprocess.run(
            [sys.executable, "-m", "runtime.cli", *arguments],
            env={**os.environ, **self.environment},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    folder = tmp_path_factory.mktemp("operator")
    layout = Layout(folder / "servers")
    layout.create()
    kafka = Kafka(layout)
    with running(kafka, layout):
        environment = {
            "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
            "CARDS_DIR": str(write_cards(folder / "cards", served().models[0])),
            "DATA_DIR": str(folder / "data"),
        }
        settings = Settings(
            _env_file=None, kafka_bootstrap_servers=kafka.bootstrap, cards_dir=Path(environment["CARDS_DIR"])
        )
        apply_topics(settings)
        found = Installation(settings, environment)
        found.run("stop", "robot", f"customer/{LOCKED}", "--reason", "in repair", "--by", "ana")
        found.early = set(ask(settings, LOCKED, LOCKED))
        with gates(environment, folder) as processes:
            for gate in processes:
                wait_until_ready(gate)
            yield found


class HeldWorker(InstantWorker):
    """Alive, and answers nothing until it is let: completions are in flight for as long as the test wants."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.go = threading.Event()

    def __enter__(self) -> HeldWorker:
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        super().__exit__()

    def _answer(self) -> None:
        self.go.wait()
        super()._answer()


class Follower:
    """Every record of a topic, in the order of its partitions, as it comes."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._consumer: Consumer = build_consumer(settings, f"follower-{uuid.uuid4()}", group=None)
        ends = end_positions(self._consumer, topic)
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        self._topic = topic
        self.records: list[Record] = []

    def read(self, timeout_s: float = 0.2) -> bool:
        message = self._consumer.poll(timeout_s)
        if message is None or message.error() is not None:
            return False
        self.records.append(record_of(message))
        return True

    def read_to_end(self) -> None:
        ends = end_positions(self._consumer, self._topic)
        while sum(ends.values()) > len(self.records):
            self.read()

    def outcomes(self) -> list[Outcome]:
        return [outcome for _, outcome in self.dated_outcomes()]

    def dated_outcomes(self) -> list[tuple[int, Outcome]]:
        """With the broker's append time in milliseconds; without the empty records that warm a producer up."""
        return [(r.timestamp_ms, Outcome.FromString(r.value)) for r in self.records if r.value]

    def wait_for_outcomes(self, wanted: set[str], timeout_s: float = 60) -> dict[str, Outcome]:
        """By request id. Fails where one does not come."""
        end = time.monotonic() + timeout_s
        while missing := wanted - {outcome.request.request_id for outcome in self.outcomes()}:
            assert time.monotonic() < end, f"no outcome of {len(missing)} of {len(wanted)}"
            self.read()
        return {o.request.request_id: o for o in self.outcomes() if o.request.request_id in wanted}

    def close(self) -> None:
        self._consumer.close()


@contextmanager
def following(settings: Settings, topic: str) -> Iterator[Follower]:
    follower = Follower(settings, topic)
    try:
        yield follower
    finally:
        follower.close()


def ask(settings: Settings, *robots: str, robot_type: str = "test_arm") -> dict[str, str]:
    """One request of each robot; request id -> robot."""
    producer = build_producer(settings, "ask")
    sent = {}
    for robot in robots:
        asked = request(time.monotonic_ns() % 2**32, robot_id=robot, picture=pictures.jpeg())
        asked.robot_type = robot_type
        headers = h.encode({h.CUSTOMER_ID: "customer", h.REPLY_TOPIC: REPLIES, h.REPLY_PARTITION: 0})
        producer.produce(REQUESTS, asked.SerializeToString(), key=robot, headers=list(headers))
        sent[asked.request_id] = robot
    assert producer.flush(30) == 0
    return sent


def code(outcome: Outcome) -> str:
    return outcome.rejection.code or "actions"


@pytest.mark.timeout(240)
def test_a_stop_holds_for_what_is_asked_and_for_what_is_in_flight_until_the_resume(installation: Installation) -> None:
    settings = installation.settings
    accepted = accepted_topic(model().deployment)
    with (
        HeldWorker(settings) as worker,
        following(settings, OUTCOMES) as outcomes,
        following(settings, accepted) as going,
    ):
        # A stop from before the gates' start: they judge nothing before they know it.
        locked = installation.early | set(ask(settings, LOCKED))
        assert {code(outcome) for outcome in outcomes.wait_for_outcomes(locked).values()} == {Code.STOPPED}

        # In flight at the stop: accepted, not yet answered.
        in_flight = ask(settings, "arm-1", "arm-2", "arm-1", "arm-2")
        deadline = time.monotonic() + 60
        while not set(in_flight) <= {record.headers[h.REQUEST_ID] for record in going.records}:
            assert time.monotonic() < deadline, "the gates accept nothing"
            going.read()
        said = installation.run("stop", "robot", "customer/arm-1", "--reason", "a person is in the cell", "--by", "bo")
        assert "robot:customer/arm-1 is stopped" in said
        # One gate judges both of a robot's ways: once it refuses a request, it knows the stop.
        refused = False
        while not refused:
            probe = ask(settings, "arm-1")
            deadline = time.monotonic() + 5
            while time.monotonic() < deadline and not refused:
                outcomes.read()
                refused = any(o.request.request_id in probe and code(o) == Code.STOPPED for o in outcomes.outcomes())
        worker.go.set()
        decided = outcomes.wait_for_outcomes(set(in_flight))
        assert {(in_flight[name], code(outcome)) for name, outcome in decided.items()} == {
            ("arm-1", Code.STOPPED),
            ("arm-2", "actions"),
        }

        listed = installation.run("stops")
        assert "robot:customer/arm-1  by bo: a person is in the cell" in listed
        assert f"robot:customer/{LOCKED}  by ana: in repair" in listed
        installation.run("resume", "robot", "customer/arm-1", "--reason", "the cell is empty", "--by", "bo")
        while True:
            again = ask(settings, "arm-1")
            if code(outcomes.wait_for_outcomes(set(again)).popitem()[1]) == "actions":
                break
        assert "arm-1" not in installation.run("stops")
        history = installation.run("stops", "--history").splitlines()
        assert [line.split("  ")[1] for line in history if "arm-1 " in line] == ["stopped", "resumed"]


@pytest.mark.timeout(240)
def test_a_robot_type_that_a_customer_brings_is_served_until_it_is_withdrawn(installation: Installation) -> None:
    settings = installation.settings
    card = EmbodimentCard.model_validate(own())
    record = next_embodiment(RobotTypes(load_cards(settings.cards_dir)), "customer", card, who="k", origin="o")
    publisher = Publisher(build_producer(settings, "robots"), Metrics())
    try:
        with InstantWorker(settings), following(settings, OUTCOMES) as outcomes:

            def answer() -> Outcome:
                return outcomes.wait_for_outcomes(set(ask(settings, "arm-7", robot_type="my_arm"))).popitem()[1]

            assert code(answer()) == Code.INVALID_ROBOT_TYPE
            asyncio.run(publish_embodiment(publisher, "customer", "my_arm", record))
            while (answered := answer()).rejection.code:
                assert answered.rejection.code == Code.INVALID_ROBOT_TYPE
            assert list(answered.chunk.names) == ["j1", "j2", "grip"]
            assert answered.chunk.safety.mode == SafetyMode.SAFETY_MODE_MONITOR
            # Of one customer's own: nobody else's robots are of this type.
            robots = RobotTypes(load_cards(settings.cards_dir))
            view = CompactedView(partial(build_consumer, settings, "late", group=None), EMBODIMENTS, robots.update)
            view.start()
            assert view.wait_ready(30)
            view.close(Deadline(10))
            assert robots.find("customer", "my_arm") == card
            assert robots.find("another", "my_arm") is None
            asyncio.run(publish_embodiment(publisher, "customer", "my_arm", None))
            while not (withdrawn := answer()).rejection.code:
                pass
            assert withdrawn.rejection.code == Code.INVALID_ROBOT_TYPE
    finally:
        publisher.close(10)


@pytest.mark.timeout(240)
def test_a_second_after_a_stop_is_acknowledged_no_action_reaches_the_robot_and_others_go_on(
    installation: Installation,
) -> None:
    settings = installation.settings
    with InstantWorker(settings), following(settings, REPLIES) as replies, following(settings, OUTCOMES) as outcomes:
        with OpenLoopLoad(settings, rate_hz=20, robots=4) as load:
            _wait_for_load(load, 40)
            outcomes.wait_for_outcomes(set(load.sent[:40]))
            for kind, name in (("robot", "customer/arm-3"), ("fleet", "customer"), ("all", "")):
                arguments = [kind, name] if name else [kind]
                installation.run("stop", *arguments, "--reason", "a drill", "--by", "bo")
                _wait_for_load(load, len(load.sent) + 120)
                installation.run("resume", *arguments, "--reason", "the drill is over", "--by", "bo")
                _wait_for_load(load, len(load.sent) + 80)
        outcomes.wait_for_outcomes(set(load.sent))
        replies.read_to_end()
        with following(settings, CONTROL) as control:
            control.read_to_end()
            words = control.records[-6:]
    for stop, resume, robots in zip(words[::2], words[1::2], ({"arm-3"}, _all_robots(), _all_robots()), strict=True):
        held = range(stop.timestamp_ms + STOP_HOLDS_AFTER_MS, resume.timestamp_ms)
        while_held = [
            (outcome.request.robot_id, code(outcome)) for at_ms, outcome in replies.dated_outcomes() if at_ms in held
        ]
        assert {robot for robot, _ in while_held} == _all_robots(), "the load has to go on during the stop"
        assert {found for robot, found in while_held if robot in robots} == {Code.STOPPED}, stop.key
        assert {found for robot, found in while_held if robot not in robots} <= {"actions"}
    assert {code(outcome) for outcome in outcomes.wait_for_outcomes(set(load.sent[-20:])).values()} == {"actions"}
    rows = [outcome.row_id for outcome in outcomes.outcomes()]
    assert len(rows) == len(set(rows)), "a stop makes no second outcome"


def _all_robots() -> set[str]:
    return {f"arm-{number}" for number in range(4)}


def _wait_for_load(load: OpenLoopLoad, requests: int) -> None:
    end = time.monotonic() + 60
    while len(load.sent) < requests:
        assert time.monotonic() < end, "the load does not run"
        time.sleep(0.05)


def bury(settings: Settings, record: Record, reason: str) -> None:
    """Dead letter a record as a stage does."""
    publisher = Publisher(build_producer(settings, "bury"), Metrics())
    error = Poison(reason, "made for a test")
    write_dead_letter(publisher, Metrics(), record, reason=reason, stage="decode", group="test", error=error)
    publisher.close(10)


@pytest.mark.timeout(240)
def test_dead_letters_are_listed_shown_replayed_through_the_same_gates_and_purged(installation: Installation) -> None:
    settings = installation.settings
    buried = dead_letter_topic(REQUESTS)
    with (
        InstantWorker(settings),
        following(settings, OUTCOMES) as outcomes,
        following(settings, buried) as graves,
        following(settings, RESULTS) as results,
    ):
        # Poison that the gate itself buries.
        producer = build_producer(settings, "poison")
        producer.produce(REQUESTS, b"\xff\xfe poison", key="arm-5", headers=[(h.CUSTOMER_ID, b"customer")])
        assert producer.flush(30) == 0
        while not graves.records:
            graves.read()
        # A good request and a completion that a stage once could not read.
        good = request(1, robot_id="arm-6", picture=pictures.jpeg())
        partition = partition_of(b"arm-6", settings.kafka_partitions)
        headers = h.encode({h.CUSTOMER_ID: "customer", h.REQUEST_ID: good.request_id})
        lost = Record(REQUESTS, partition, 10**6, b"arm-6", good.SerializeToString(), 5, headers)
        bury(settings, lost, "too_new")
        (decided,) = ask(settings, "arm-7")
        outcomes.wait_for_outcomes({decided})
        results.read_to_end()
        bury(settings, next(r for r in results.records if r.key == b"arm-7"), "too_new")

        listed = installation.run("dlq", "list")
        assert f"{buried}/0/0 " in listed
        assert f"{buried}/0/1 " in listed
        assert good.request_id in listed
        assert "request_gate" in listed
        assert "no dead letters" in installation.run("dlq", "list", "--until", "2h")
        assert "2 of" not in installation.run("dlq", "list", "--reason", "too_new", "--topic", REQUESTS)
        shown = installation.run("dlq", "show", f"{buried}/0/1")
        assert good.instruction in shown
        assert "__connect.errors.exception.message: made for a test" in shown
        assert "ff fe 20 70" in installation.run("dlq", "show", f"{buried}/0/0")
        installation.run("dlq", "replay", status=1)

        assert "2 would be sent again" in installation.run("dlq", "replay", "--reason", "too_new", "--dry-run")
        assert "2 sent again" in installation.run("dlq", "replay", "--reason", "too_new")
        (outcome,) = outcomes.wait_for_outcomes({good.request_id}).values()
        assert (code(outcome), outcome.request.source.partition) == ("actions", partition)
        # The completion of a decided request is dropped, and what died for good dies again.
        assert "1 sent again" in installation.run("dlq", "replay", f"{buried}/0/0")
        nowhere = installation.run("dlq", "replay", f"{buried}/0/999999", status=1)
        assert f"there is no dead letter at {buried}/0/999999" in nowhere
        while len(graves.records) < 3:
            graves.read()
        assert graves.records[2].value == graves.records[0].value
        (settled,) = ask(settings, "arm-7")
        outcomes.wait_for_outcomes({settled})
        outcomes.read_to_end()
        assert [o.request.request_id for o in outcomes.outcomes()].count(decided) == 1
        results.read_to_end()
        replayed = [record for record in results.records if REPLAYED_FROM in record.headers]
        assert [r.headers[REPLAYED_FROM] for r in replayed] == [f"{dead_letter_topic(RESULTS)}/0/0"]

        # Only what is meant goes.
        refused = installation.run("dlq", "purge", "--topic", REQUESTS, "--reason", "too_new", "--yes", status=1)
        assert "Kafka deletes from the front only" in refused
        assert "3 purged" in installation.run("dlq", "purge", "--topic", REQUESTS, "--yes")
        left = installation.run("dlq", "list")
        assert buried not in left
        assert dead_letter_topic(RESULTS) in left
