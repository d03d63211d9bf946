"""Whoever looks at consumer groups outlives the broker that it asks."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

import pytest

from runtime.broker_offsets import KafkaOffsets
from runtime.errors import Unavailable
from runtime.kafka import build_admin, build_consumer
from runtime.settings import Settings
from runtime.stack.kafka import QUICK_START, Kafka
from runtime.stack.layout import Layout
from tests.embedded import running

_GROUPS = ("one", "two", "three")
_PATIENCE_S = 90.0


def _look(bootstrap: str, stop: Event, answered: Any, refused: Any) -> None:
    """Looks as often as it can; counts what was answered and what was not."""
    settings = Settings(_env_file=None, kafka_bootstrap_servers=bootstrap)
    offsets = KafkaOffsets(build_admin(settings), lambda group: build_consumer(settings, "lag", group=group))
    while not stop.is_set():
        for group in _GROUPS:
            try:
                offsets.committed(group, offsets.places())
                answered.value += 1
            except Unavailable:
                refused.value += 1
    offsets.close()


@pytest.mark.kafka
def test_a_broker_that_is_killed_while_groups_are_looked_at_ends_no_process(own_layout: Layout) -> None:
    """librdkafka's Admin API aborts the process here (confluentinc/librdkafka#4605), so it runs in one of its own."""
    kafka, context = Kafka(own_layout, QUICK_START), multiprocessing.get_context("spawn")
    stop, answered, refused = context.Event(), context.Value("q", 0), context.Value("q", 0)
    with running(kafka, own_layout) as server:
        looking = context.Process(target=_look, args=(kafka.bootstrap, stop, answered, refused), daemon=True)
        looking.start()

        def until(condition: Callable[[], bool]) -> None:
            end = time.monotonic() + _PATIENCE_S
            while not condition():
                assert looking.exitcode is None, f"it ended with status {looking.exitcode}"
                assert time.monotonic() < end, "it neither ended nor went on"
                time.sleep(0.05)

        try:
            for _ in range(2):
                seen, missed = answered.value, refused.value
                until(lambda seen=seen: answered.value > seen + 10)  # type: ignore[misc] # bound for this turn
                server.kill()
                until(lambda missed=missed: refused.value > missed + 2)  # type: ignore[misc]
                server.start()
            seen = answered.value
            until(lambda: answered.value > seen + 10)
            stop.set()
            looking.join(_PATIENCE_S)
        finally:
            looking.kill()
    assert looking.exitcode == 0
