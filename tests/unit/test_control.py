"""An operator's stop: which robots it holds, and the record of who did it and why."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.control import (
    ALL,
    StopList,
    control_record,
    fleet_target,
    model_target,
    publish_control,
    robot_target,
)
from runtime.control_commands import login_name
from runtime.errors import Reject, Unavailable
from schemas.messages import Control
from schemas.topics import CONTROL, declare
from tests.in_memory import InMemoryBroker

ROBOT = {"customer_id": "north", "robot_id": "arm-1", "model": "pi0"}
TARGETS = (ALL, fleet_target("north"), model_target("pi0"), robot_target("north", "arm-1"))


def say(stops: StopList, target: str, stopped: bool) -> None:
    control = Control(target=target, stopped=stopped, who="ana", why="a test")
    stops.update(target.encode(), control.SerializeToString(), 0)


@pytest.mark.parametrize("target", TARGETS)
def test_a_stop_holds_for_every_robot_that_it_names_until_its_resume(target: str) -> None:
    stops = StopList()
    assert stops.stop_of(**ROBOT) is None
    say(stops, target, True)
    found = stops.stop_of(**ROBOT)
    assert found is not None
    assert (found.target, found.who, found.why) == (target, "ana", "a test")
    assert [control.target for control in stops.stopped()] == [target]
    say(stops, target, False)
    assert stops.stop_of(**ROBOT) is None
    assert stops.stopped() == []


@pytest.mark.parametrize("other", [robot_target("south", "arm-1"), robot_target("north", "arm-2"), fleet_target("n")])
def test_a_stop_of_another_target_holds_nobody_else(other: str) -> None:
    stops = StopList()
    say(stops, other, True)
    assert stops.stop_of(**ROBOT) is None


@given(words=st.lists(st.tuples(st.sampled_from(TARGETS), st.booleans()), max_size=20))
def test_the_last_word_on_each_target_holds_and_none_lifts_another(words: list[tuple[str, bool]]) -> None:
    stops = StopList()
    for target, stopped in words:
        say(stops, target, stopped)
    held = {target for target, stopped in dict(words).items() if stopped}
    assert {control.target for control in stops.stopped()} == held
    assert (stops.stop_of(**ROBOT) is not None) == bool(held)


def test_a_tombstone_is_a_resume() -> None:
    stops = StopList()
    say(stops, ALL, True)
    stops.update(ALL.encode(), None, 0)
    assert stops.stop_of(**ROBOT) is None


@pytest.mark.parametrize("robot_id", ["", "arm 1", "a/b", "x" * 65, "\N{LATIN SMALL LETTER A WITH DIAERESIS}rm"])
def test_a_robot_that_cannot_exist_is_not_stopped_in_vain(robot_id: str) -> None:
    with pytest.raises(Reject, match="robot_id"):
        robot_target("north", robot_id)


@pytest.mark.parametrize("name", ["", " north", "a/b", "a\nb", "x" * 201])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(Reject):
        fleet_target(name)
    with pytest.raises(Reject):
        model_target(name)


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("x", " "), ("x", "a\x1b[2J"), ("x" * 201, "x"), ("x", "x" * 501)])
def test_a_record_without_who_or_why_is_never_made(who: str, why: str) -> None:
    with pytest.raises(Reject):
        control_record(ALL, stopped=True, who=who, why=why)


async def test_the_record_says_who_why_and_when_under_its_target() -> None:
    broker = InMemoryBroker({CONTROL: 1})
    control = control_record(fleet_target("north"), stopped=True, who=" ana ", why="fire drill", now_s=12.5)
    where = await publish_control(broker.publisher(), control, origin="cli")
    (record,) = broker.records(CONTROL)
    assert (record.key, record.offset) == (b"fleet:north", where.offset)
    written = Control.FromString(record.value or b"")
    assert (written.who, written.why, written.at_ms, written.stopped) == ("ana", "fire drill", 12_500, True)


async def test_a_stop_that_the_broker_did_not_take_is_an_error() -> None:
    broker = InMemoryBroker({CONTROL: 1})
    publisher = broker.publisher()
    publisher.fail_next(CONTROL, Unavailable("away"))
    with pytest.raises(Unavailable):
        await publish_control(publisher, control_record(ALL, stopped=True, who="ana", why="x"), origin="cli")


def test_every_stop_and_resume_can_be_read_for_ninety_days() -> None:
    topics = declare(fleets=[], deployments=[], partitions=1, accepted_partitions=1, reply_partitions=1)
    (config,) = [topic.broker_config() for topic in topics if topic.name == CONTROL]
    assert (config["cleanup.policy"], config["retention.ms"]) == ("compact", "-1")
    assert int(config["min.compaction.lag.ms"]) == 90 * 86_400_000


def test_somebody_runs_this() -> None:
    assert login_name()
