"""What an API process does besides answering, and what its end does not wait for."""

from __future__ import annotations

import asyncio
import threading

import pytest

from ingest_api.upkeep import Upkeep
from runtime.errors import Unavailable
from tests.in_memory.broker import InMemoryBroker
from tests.unit.api_stand_ins import absent_database


def test_an_outbox_that_waits_for_kafka_does_not_keep_the_process_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, over, returned = threading.Event(), threading.Event(), threading.Event()

    def drain(*_: object) -> int:
        asked.set()
        over.wait(5)
        returned.set()
        raise Unavailable("Kafka has not confirmed records of the outbox in time")

    async def run() -> None:
        upkeep = Upkeep(absent_database(), InMemoryBroker({}).publisher(), None)
        upkeep.start()
        assert await asyncio.to_thread(asked.wait, 10)
        await upkeep.close()

    monkeypatch.setattr("ingest_api.upkeep.drain", drain)
    asyncio.run(run())
    assert not returned.is_set()
    over.set()
    assert returned.wait(10)


async def test_an_outbox_that_could_not_be_sent_is_sent_later(monkeypatch: pytest.MonkeyPatch) -> None:
    again = threading.Event()
    tries: list[int] = []

    def drain(*_: object) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise Unavailable("Kafka is away")
        again.set()
        return 0

    monkeypatch.setattr("ingest_api.upkeep.drain", drain)
    monkeypatch.setattr("ingest_api.upkeep._OUTBOX_S", 0.01)
    upkeep = Upkeep(absent_database(), InMemoryBroker({}).publisher(), None)
    upkeep.start()
    assert await asyncio.to_thread(again.wait, 10)
    await upkeep.close()
