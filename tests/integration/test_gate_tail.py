"""Records that Faust drops at the end of a partition are read again, although none comes after them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from runtime.kafka import Record, build_consumer, build_producer
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.topics import REQUESTS
from stream_agents.app import Gate, build_app
from stream_agents.log_reader import LogReader
from stream_agents.stall import TailGuard
from tests.integration.test_request_reply import broker

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


class DroppingFetch:
    """Stands before Faust's fetch and loses the first records of requests, as Faust does when partitions move."""

    def __init__(self, consumer: Any, count: int) -> None:
        self._fetch = consumer.getmany
        self._count = count
        self.dropped: list[bytes] = []
        consumer.getmany = self.getmany

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[Any, Any]]:  # noqa: ASYNC109 - called so by Faust
        async for tp, message in self._fetch(timeout):
            if tp.topic == REQUESTS and len(self.dropped) < self._count:
                self.dropped.append(message.value)
            else:
                yield tp, message


@pytest.mark.timeout(120)
def test_the_last_records_of_a_partition_are_not_lost_where_faust_drops_them(tmp_path: Path) -> None:
    with broker(tmp_path) as (_, settings):
        wanted = produce(settings, 3)
        asyncio.run(read_all(settings, tmp_path, wanted))


def produce(settings: Settings, count: int) -> set[bytes]:
    producer, values = build_producer(settings, "robots"), {b"%d" % number for number in range(count)}
    for value in values:
        producer.produce(REQUESTS, value, partition=1)
    assert producer.flush(30) == 0
    return values


async def read_all(settings: Settings, folder: Path, wanted: set[bytes]) -> None:
    metrics, got = Metrics(), set[bytes]()
    log_reader = LogReader(partial(build_consumer, settings, "log", group=None))
    app = build_app(settings, folder / "gate")
    gate = Gate(
        app, request_topics=[REQUESTS], partitions=settings.kafka_partitions, log_reader=log_reader, metrics=metrics
    )

    async def on_request(record: Record) -> None:
        got.add(record.value or b"")

    async def on_completion(record: Record) -> None:
        raise AssertionError(f"nobody completes anything here: {record}")

    gate.install(on_request=on_request, on_completion=on_completion, restore=lambda owned: None)
    app.finalize()
    fetch = DroppingFetch(app.consumer, len(wanted))
    await gate.start()
    tails, end = TailGuard[Any](limit_s=0.5), time.monotonic() + 60
    try:
        while got != wanted:
            assert time.monotonic() < end, f"{wanted - got} came to no agent; {len(fetch.dropped)} were dropped"
            await gate.seek_back(tails.dropped(gate.unread()))
            await asyncio.sleep(0.1)
    finally:
        await app.stop()
        log_reader.close(Deadline(5))
    assert set(fetch.dropped) == wanted
