"""One gate's Faust app in this process, on a real broker, with handlers of the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from runtime.kafka import Record, build_consumer, build_producer
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.topics import REQUESTS
from stream_agents.app import Gate, Handle, build_app
from stream_agents.log_reader import LogReader


def produce(settings: Settings, partition: int, count: int) -> set[bytes]:
    """So many records of one partition; their values."""
    producer, values = build_producer(settings, "robots"), [b"%d" % number for number in range(count)]
    for value in values:
        producer.produce(REQUESTS, value, partition=partition)
    assert producer.flush(30) == 0
    return set(values)


@asynccontextmanager
async def running_gate(
    settings: Settings, folder: Path, on_request: Callable[[Gate, Record], Any], prepare: Callable[[Any], None]
) -> AsyncIterator[Gate]:
    """prepare: gets the Faust app right before it starts."""
    log_reader = LogReader(partial(build_consumer, settings, "log", group=None))
    gate = Gate(
        build_app(settings, folder),
        request_topics=[REQUESTS],
        partitions=settings.kafka_partitions,
        log_reader=log_reader,
        metrics=Metrics(),
    )

    async def on_completion(record: Record) -> None:
        raise AssertionError(f"nobody completes anything here: {record}")

    handle: Handle = partial(on_request, gate)
    gate.install(on_request=handle, on_completion=on_completion, restore=lambda owned: None)
    gate.app.finalize()
    prepare(gate.app)
    await gate.start()
    try:
        yield gate
    finally:
        await gate.app.stop()
        log_reader.close(Deadline(5))
