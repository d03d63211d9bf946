"""A compacted topic as a live view: whole before it is ready, and never set back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from confluent_kafka import Consumer, TopicPartition

from runtime.control import StopList, control_record
from runtime.errors import Unavailable
from runtime.lifecycle import Deadline
from runtime.view import CompactedView
from schemas.topics import CONTROL
from tests.in_memory import InMemoryBroker

ROBOT = {"customer_id": "north", "robot_id": "arm-1", "model": "pi0"}


class Connection:
    """A groupless consumer of vla.control.v1; breaks when it has read `lasts` records, if that is given."""

    def __init__(self, broker: InMemoryBroker, lasts: int | None) -> None:
        self._broker = broker
        self._lasts = lasts
        self._next = 0

    def list_topics(self, topic: str, timeout: float) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions={0: None})})

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, self._broker.end((CONTROL, 0))

    def assign(self, places: list[TopicPartition]) -> None:
        self._next = max(places[0].offset, 0)

    def position(self, places: list[TopicPartition]) -> list[TopicPartition]:
        return [TopicPartition(CONTROL, 0, self._next or -1001)]

    def poll(self, timeout: float) -> Any:
        if self._lasts == 0:
            raise Unavailable("the connection is lost")
        message = self._broker.read((CONTROL, 0), self._next)
        if message is None:
            self._broker.wait_for(lambda: self._broker.end((CONTROL, 0)) > self._next, timeout)
            return None
        self._next += 1
        self._lasts = None if self._lasts is None else self._lasts - 1
        return message

    def close(self) -> None:
        """Holds nothing."""


def write(broker: InMemoryBroker, *stopped: bool) -> None:
    for stop in stopped:
        control = control_record("all", stopped=stop, who="ana", why="a test")
        broker.publisher().publish(CONTROL, control.SerializeToString(), key=b"all")


def test_it_is_ready_once_it_has_read_what_stood_there_and_follows_from_then_on() -> None:
    broker, stops = InMemoryBroker({CONTROL: 1}), StopList()
    write(broker, *[False, True] * 50)
    view = CompactedView(lambda: cast(Consumer, Connection(broker, None)), CONTROL, stops.update)
    assert not view.ready
    view.start()
    assert view.wait_ready(10)
    assert stops.stop_of(**ROBOT) is not None
    write(broker, False)
    assert broker.wait_for(lambda: stops.stop_of(**ROBOT) is None)
    view.close(Deadline(5))


def test_a_lost_connection_never_brings_back_a_word_that_was_superseded() -> None:
    broker = InMemoryBroker({CONTROL: 1})
    write(broker, True, False, True)
    connections = iter([Connection(broker, 3), Connection(broker, None)])
    heard: list[int] = []
    stops = StopList()

    def take(key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        stops.update(key, value, appended_at_ms)
        heard.append(len(heard))

    view = CompactedView(lambda: cast(Consumer, next(connections)), CONTROL, take)
    view.start()
    assert view.wait_ready(10)
    write(broker, True)
    assert broker.wait_for(lambda: len(heard) == 4)
    assert stops.stop_of(**ROBOT) is not None
    view.close(Deadline(5))


def test_a_record_that_is_none_is_passed_over_and_the_stops_stay() -> None:
    broker, stops = InMemoryBroker({CONTROL: 1}), StopList()
    write(broker, True)
    broker.publisher().publish(CONTROL, b"\xff\xff\xff", key=b"all")
    broker.publisher().publish(CONTROL, b"\xff\xff\xff", key=b"model:pi0")
    view = CompactedView(lambda: cast(Consumer, Connection(broker, None)), CONTROL, stops.update)
    view.start()
    assert view.wait_ready(10)
    assert [control.target for control in stops.stopped()] == ["all"]
    view.close(Deadline(5))
