"""No offset is committed whose rows are in the gate's memory alone: the changelog has them first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition

from runtime.kafka import Record, build_consumer
from runtime.settings import Settings
from schemas.topics import GATE_APP, REQUESTS
from stream_agents.app import Gate
from tests.gate_case import produce, running_gate
from tests.integration.test_request_reply import broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
PARTITION, COUNT = 1, 3


class HeldChangelog:
    """A broker that takes no record of the changelog until it is told to."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    def install(self, app: Any) -> None:
        self._send = app.producer.send_soon
        app.producer.send_soon = self.held.append

    def let_go(self, app: Any) -> None:
        app.producer.send_soon = self._send
        for message in self.held:
            self._send(message)


@pytest.mark.timeout(120)
def test_an_offset_is_committed_once_the_changelog_has_its_rows(tmp_path: Path) -> None:
    with broker(tmp_path) as (_, settings):
        asyncio.run(commit_late(settings, tmp_path / "gate"))


async def commit_late(settings: Settings, folder: Path) -> None:
    produce(settings, PARTITION, COUNT)
    handled, changelog = list[int](), HeldChangelog()

    async def on_request(gate: Gate, record: Record) -> None:
        gate.store[b"%d" % record.offset] = record.value or b""
        handled.append(record.offset)

    async def until(condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < end, what
            await asyncio.sleep(0.05)

    asking = build_consumer(settings, "asking", group=GATE_APP)

    def committed() -> int:
        (place,) = asking.committed([TopicPartition(REQUESTS, PARTITION)], timeout=10)
        return place.offset

    async with running_gate(settings, folder, on_request, changelog.install) as gate:
        await until(lambda: len(handled) == COUNT, "the records came to no agent")
        await gate.app.consumer.commit()
        assert committed() < 0, "committed with its rows in memory alone"
        assert len(changelog.held) == COUNT
        changelog.let_go(gate.app)
        await until(lambda: committed() == COUNT, "nothing is committed although the changelog has all rows")
    asking.close()
