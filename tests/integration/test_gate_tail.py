"""Records that Faust drops at the end of a partition are read again, although none comes after them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runtime.kafka import Record
from runtime.settings import Settings
from schemas.topics import REQUESTS
from stream_agents.app import Gate
from stream_agents.stall import TailGuard
from tests.gate_case import produce, running_gate
from tests.integration.test_request_reply import broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]
#: Of the records that are dropped; other partitions go on.
PARTITION = 1


class DroppingFetch:
    """Stands before Faust's fetch and loses the first records of a partition, as Faust does when partitions move."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.dropped: list[bytes] = []

    def install(self, app: Any) -> None:
        self._fetch = app.consumer.getmany
        app.consumer.getmany = self.getmany

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - called so by Faust
        async for tp, message in self._fetch(timeout):
            if (tp.topic, tp.partition) == (REQUESTS, PARTITION) and len(self.dropped) < self._count:
                self.dropped.append(message.value)
            else:
                yield tp, message


@pytest.mark.timeout(120)
def test_the_last_records_of_a_partition_are_not_lost_where_faust_drops_them(tmp_path: Path) -> None:
    with broker(tmp_path) as (_, settings):
        asyncio.run(read_all(settings, tmp_path / "gate"))


async def read_all(settings: Settings, folder: Path) -> None:
    wanted, got, ended = produce(settings, PARTITION, 3), set[bytes](), asyncio.Event()

    async def on_request(gate: Gate, record: Record) -> None:
        if record.partition == PARTITION:
            got.add(record.value or b"")
        else:
            # At work all the time, as with robots of other partitions.
            await ended.wait()

    produce(settings, PARTITION + 1, 1)
    fetch = DroppingFetch(len(wanted))
    async with running_gate(settings, folder, on_request, fetch.install) as gate:
        tails, end = TailGuard[Any](limit_s=0.5), time.monotonic() + 60
        while got != wanted:
            assert time.monotonic() < end, f"{wanted - got} came to no agent; {len(fetch.dropped)} were dropped"
            await gate.seek_back(tails.dropped(gate.unread()))
            await asyncio.sleep(0.1)
        ended.set()
    assert set(fetch.dropped) == wanted
