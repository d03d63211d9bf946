"""The Parquet sink against a real S3 server: exactly once, through outages, and readable by plain pyarrow."""

from __future__ import annotations

import io
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from runtime.errors import Unavailable
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.stack.layout import Layout
from runtime.stack.s3 import S3, S3Settings
from schemas import headers as h
from schemas.topics import OUTCOMES, accepted_topic, dead_letter_topic
from sinks.flow import Flow
from sinks.marks import Limits
from sinks.parquet import NAME, ParquetStore
from sinks.parquet_files import read_column
from sinks.rows import Row
from sinks.storage import Storage, open_storage
from tests import factories as f
from tests.embedded import RunningServer, running
from tests.in_memory import InMemoryBroker
from tests.sink_case import parquet_decoder, protection

ACCEPTED = accepted_topic(f.DEPLOYMENT)
SMALL = Limits(rows=7, size_bytes=10**9, age_s=0.05)


def settings_of(s3: S3Settings, bucket: str) -> Settings:
    values: dict[str, Any] = {
        "s3_endpoint": s3.endpoint,
        "s3_bucket": bucket,
        "s3_access_key": s3.access_key,
        "s3_secret_key": s3.secret_key,
    }
    return Settings(_env_file=None, **values)


@pytest.fixture
def settings(s3_settings: S3Settings) -> Settings:
    return settings_of(s3_settings, f"parquet-{uuid.uuid4().hex[:12]}")


class Running:
    """A flow over a broker in memory and a lake on a real S3 server. Crashes and stops on demand."""

    def __init__(self, storage: Storage, broker: InMemoryBroker | None = None, limits: Limits = SMALL) -> None:
        topics = {OUTCOMES: 1, ACCEPTED: 1}
        self.broker = broker or InMemoryBroker({**topics, **{dead_letter_topic(topic): 1 for topic in topics}})
        self.metrics = Metrics()
        self.consumer = self.broker.consumer(NAME)
        self.flow: Flow[Row] = Flow(
            name=NAME,
            consumer=self.consumer,
            topics=[ACCEPTED, OUTCOMES],
            decode=parquet_decoder({ACCEPTED: f.DEPLOYMENT}),
            store=ParquetStore(storage, self.metrics, protection()),
            limits=limits,
            total_bytes=10**9,
            publisher=self.broker.publisher(),
            metrics=self.metrics,
        )
        self._stopping = threading.Event()
        # A daemon, so that a test that fails before it stops it does not keep pytest alive.
        self._thread = threading.Thread(target=self.flow.run, args=(self._stopping,), daemon=True)
        self._thread.start()

    def crash(self) -> None:
        """Gone without a last write and without a commit."""
        self._stopping.set()
        self._thread.join()
        self.broker.evict(self.consumer)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        self.flow.drain(Deadline(10))
        self.flow.close(Deadline(1))

    def outcomes(self, *numbers: int) -> None:
        for number in numbers:
            value = f.outcome(results_offset=number).SerializeToString()
            self.broker.publisher().publish(OUTCOMES, value, key=b"robot-1", partition=0)

    def observations(self, *numbers: int, tier: str = "full") -> None:
        for number in numbers:
            record = f.accepted_record(headers={h.SOURCE: f"vla.requests.v1/0/{number}", h.CONSENT_TIER: tier})
            self.broker.publisher().publish(ACCEPTED, record.value, headers=record.raw_headers, partition=0)

    def wait_consumed(self, records: int, topic: str) -> None:
        value = self.metrics.registry.get_sample_value
        read = {"topic": topic}
        assert self.broker.wait_for(lambda: value("vla_records_consumed_total", read) == records, timeout_s=30)

    def wait_written(self, rows: int, dataset: str) -> None:
        labels = {"sink": NAME, "dataset": dataset}
        value = self.metrics.registry.get_sample_value
        assert self.broker.wait_for(lambda: (value("vla_sink_rows_total", labels) or 0) >= rows, timeout_s=30)


def column(storage: Storage, dataset: str, name: str) -> list[Any]:
    return [value for file in storage.files(f"{dataset}/") for value in read_column(storage, file, name)]


def test_every_outcome_and_every_consented_observation_lies_in_the_lake_once(settings: Settings) -> None:
    storage = open_storage(settings)
    sink = Running(storage)
    sink.outcomes(*range(20), *range(15, 30))
    sink.observations(*range(10), *range(5, 12))
    sink.observations(*range(12, 20), tier="none")
    sink.wait_written(30, "outcomes")
    sink.wait_written(12, "observations")
    sink.wait_consumed(25, ACCEPTED)
    sink.stop()
    assert column(storage, "outcomes", "results_offset") == list(range(30))
    assert column(storage, "observations", "source_offset") == list(range(12))
    skipped = {"sink": NAME, "dataset": "observations", "reason": "consent"}
    assert sink.metrics.registry.get_sample_value("vla_sink_skipped_total", skipped) == 8


@pytest.mark.parametrize("after", [0, 5, 17])
def test_crashes_between_writes_leave_each_outcome_once(settings: Settings, after: int) -> None:
    storage = open_storage(settings)
    sink = Running(storage)
    sink.outcomes(*range(20))
    sink.wait_written(after, "outcomes")
    sink.crash()
    sink.broker.group(NAME).committed.clear()
    again = Running(storage, sink.broker)
    again.outcomes(*range(18, 40))
    assert sink.broker.wait_for(lambda: sink.broker.committed(NAME, OUTCOMES, 0) == 42, timeout_s=30)
    again.stop()
    assert column(storage, "outcomes", "results_offset") == list(range(40))


def test_a_stop_writes_what_is_buffered(settings: Settings) -> None:
    storage = open_storage(settings)
    sink = Running(storage, limits=Limits(rows=10_000, size_bytes=10**9, age_s=1000))
    sink.outcomes(*range(9))
    sink.wait_consumed(9, OUTCOMES)
    assert column(storage, "outcomes", "results_offset") == []
    sink.stop()
    assert column(storage, "outcomes", "results_offset") == list(range(9))
    assert sink.broker.committed(NAME, OUTCOMES, 0) == 9


def test_plain_pyarrow_reads_the_bucket(settings: Settings, s3_settings: S3Settings) -> None:
    sink = Running(open_storage(settings))
    sink.outcomes(*range(3))
    sink.observations(0)
    sink.wait_written(3, "outcomes")
    sink.wait_written(1, "observations")
    sink.stop()
    filesystem = pyarrow.fs.S3FileSystem(
        access_key=s3_settings.access_key,
        secret_key=s3_settings.secret_key,
        endpoint_override=s3_settings.endpoint.removeprefix("http://"),
        scheme="http",
        region="us-east-1",
    )
    outcomes = ds.dataset(f"{settings.s3_bucket}/outcomes", filesystem=filesystem, partitioning="hive").to_table()
    assert outcomes.num_rows == 3
    assert "date" in outcomes.column_names
    observations = ds.dataset(f"{settings.s3_bucket}/observations", filesystem=filesystem, partitioning="hive")
    (row,) = observations.to_table(columns=["images", "instruction"]).to_pylist()
    assert (row["images"][0]["data"], row["instruction"]) == (f.jpeg(), f.INSTRUCTION)


@pytest.fixture
def own_s3(own_layout: Layout) -> Iterator[tuple[RunningServer, Settings]]:
    """A server that the test itself kills."""
    s3 = S3(own_layout)
    with running(s3, own_layout) as server:
        yield server, settings_of(s3.settings, s3.settings.bucket)


@pytest.mark.slow
def test_an_s3_server_that_dies_and_comes_back_costs_no_row(own_s3: tuple[RunningServer, Settings]) -> None:
    server, settings = own_s3
    storage = open_storage(settings)
    sink = Running(storage)
    sink.outcomes(*range(20))
    sink.wait_written(20, "outcomes")
    server.kill()
    sink.outcomes(*range(15, 50))
    with pytest.raises(Unavailable):
        storage.ping()
    server.start()
    sink.wait_written(50, "outcomes")
    sink.stop()
    assert column(storage, "outcomes", "results_offset") == list(range(50))
    for file in storage.files("outcomes/"):
        pq.read_table(io.BytesIO(storage.read(file.key, 0, file.size_bytes)))
