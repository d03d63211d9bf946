"""Consumers that are kept for single reads: nothing piles up in them, and one that fails is not kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaError, KafkaException, Message, TopicPartition

from ingest_api.console.log_frames import Log, Place
from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_consumer
from runtime.lifecycle import Deadline
from runtime.read_back import SINGLE_READS
from runtime.settings import Settings
from schemas import headers as h
from schemas.messages import InferenceRequest
from schemas.topics import REQUESTS
from stream_agents.log_reader import LogReader

REQUEST = InferenceRequest(request_id="r-1", robot_id="arm-1")
PLACE = Place(source=h.Source(REQUESTS, 0, 7), customer_id="c-1", robot_id="arm-1", request_id="r-1")
AWAY = KafkaException(KafkaError(KafkaError.REQUEST_TIMED_OUT))


class OneRecord:
    """The subset of Consumer that reads back, over one record; or one whose poll raises, or brings nothing."""

    def __init__(self, failure: Exception | None = None, *, silent: bool = False) -> None:
        self._failure = failure
        self._silent = silent
        self.closed = 0

    def assign(self, places: list[TopicPartition]) -> None:
        assert not self.closed

    def unassign(self) -> None:
        assert not self.closed

    def get_watermark_offsets(self, place: TopicPartition, timeout: float) -> tuple[int, int]:
        return 0, 8

    def poll(self, timeout_s: float) -> Message | None:
        assert not self.closed
        if self._failure is not None:
            raise self._failure
        if self._silent:
            return None
        return Message(
            topic=REQUESTS,
            partition=0,
            offset=7,
            key=b"arm-1",
            value=REQUEST.SerializeToString(),
            headers=list(h.encode({h.CUSTOMER_ID: "c-1"})),
            timestamp=(TIMESTAMP_LOG_APPEND_TIME, 1),
        )

    def close(self) -> None:
        self.closed += 1


def built(*consumers: OneRecord) -> Callable[[], Any]:
    return iter(consumers).__next__


FAILING = [
    pytest.param(lambda: OneRecord(silent=True), id="silent"),
    pytest.param(lambda: OneRecord(AWAY), id="away"),
    pytest.param(lambda: OneRecord(Unavailable("has forgotten its brokers")), id="without brokers"),
]


@pytest.mark.parametrize("failing", FAILING)
async def test_the_gate_reads_again_with_another_consumer_where_one_has_failed(
    failing: Callable[[], OneRecord],
) -> None:
    first, second = failing(), OneRecord()
    reader = LogReader(built(first, second), timeout_s=0.01)
    for _ in range(2):
        found = await reader.read(REQUESTS, 0, range(7, 8))
        assert [record.offset for record in found] == [7]
    assert (first.closed, second.closed) == (1, 0)
    reader.close(Deadline(1))
    assert second.closed == 1


@pytest.mark.parametrize("failing", [*FAILING, pytest.param(lambda: OneRecord(Fatal("may not read")), id="refused")])
async def test_the_console_reads_with_another_consumer_after_one_has_failed(failing: Callable[[], OneRecord]) -> None:
    first, second = failing(), OneRecord()
    console = Log(built(first, second), timeout_s=0.01)
    with pytest.raises(Unavailable):
        await console.request(PLACE)
    assert await console.request(PLACE) == REQUEST
    assert (first.closed, second.closed) == (1, 0)
    console.close(Deadline(1))
    assert second.closed == 1


def test_nothing_piles_up_in_a_consumer_that_is_kept_for_single_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.kafka.INTERVAL_MS", 20)
    settings = Settings(_env_file=None, kafka_bootstrap_servers="127.0.0.1:1")
    told: list[str] = []

    def note(statistics: str) -> None:
        told.append(json.loads(statistics)["client_id"])

    single = build_consumer(settings, "single", group=None, stats_cb=note, **SINGLE_READS)
    watched = build_consumer(settings, "watched", group=None, stats_cb=note)
    try:
        # Once the younger one has told of itself so often, the older one would have.
        while told.count("watched") < 3:
            watched.poll(0.1)
        single.poll(0)
    finally:
        single.close()
        watched.close()
    assert "single" not in told
