"""Role `sink parquet`: accepted observations and all outcomes as Parquet on S3 or in a folder."""

from __future__ import annotations

from runtime.kafka import Record
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.card_files import load_cards
from schemas.topics import OUTCOMES, accepted_topic
from sinks.arrow_schemas import OBSERVATIONS, SCHEMAS
from sinks.arrow_schemas import OUTCOMES as OUTCOMES_DATASET
from sinks.flow import Fenced
from sinks.lake_rows import observation_entry, outcome_entry
from sinks.marks import Batch, Entry, Limits, Mark, Partition
from sinks.parquet_files import encode, file_key, newest_file, read_mark
from sinks.rows import Row
from sinks.service import serve
from sinks.storage import AlreadyExists, Storage, open_storage

NAME = "sink-parquet"

#: Beyond it a file would grow for want of bytes: small rows are cut by number.
_MAX_ROWS = 100_000
#: What all buffers together may hold: a largest file, and the next one beside it.
_BUDGET_FILES = 2


class ParquetStore:
    """Writes batches as files that never replace another. Raises Unavailable while the storage is away."""

    server = "storage"

    def __init__(self, storage: Storage, metrics: Metrics, sink: str = NAME) -> None:
        self._storage = storage
        self._metrics = metrics
        self._sink = sink

    def ping(self) -> None:
        self._storage.ping()

    def dataset(self, topic: str) -> str:
        return OUTCOMES_DATASET if topic == OUTCOMES else OBSERVATIONS

    def open(self, partition: Partition) -> Mark:
        newest = newest_file(self._storage, self.dataset(partition.topic), partition)
        return read_mark(self._storage, newest) if newest is not None else Mark()

    def write(self, partition: Partition, batch: Batch[Row]) -> None:
        """Create the next file of the partition's chain. Raises Fenced where somebody else has."""
        dataset = self.dataset(partition.topic)
        start = batch.before.next_offset
        key = file_key(dataset, batch.entries[0].cut, partition, start)
        data = encode(batch.rows, SCHEMAS[dataset], partition, start, batch.after)
        try:
            self._storage.create(key, data)
        except AlreadyExists as error:
            raise Fenced(str(error)) from error
        self._metrics.sink_objects.labels(self._sink, dataset).inc()
        self._metrics.sink_bytes.labels(self._sink, dataset).inc(len(data))


def deployments_by_topic(settings: Settings) -> dict[str, str]:
    """Accepted topic -> deployment, of every model card."""
    cards = load_cards(settings.cards_dir)
    return {accepted_topic(card.deployment): card.deployment for card in cards.models}


def decode_row(record: Record, deployments: dict[str, str]) -> Entry[Row]:
    """A record of either kind as a row of its dataset. Raises Skip or Poison."""
    if record.topic == OUTCOMES:
        return outcome_entry(record)
    return observation_entry(record, deployments[record.topic])


def main(settings: Settings) -> int:
    """Run the role until it is told to stop; returns its exit status."""
    deployments = deployments_by_topic(settings)
    storage = open_storage(settings)
    return serve(
        settings,
        name=NAME,
        topics=[*deployments, OUTCOMES],
        decode=lambda record: decode_row(record, deployments),
        store=lambda metrics: ParquetStore(storage, metrics),
        close_store=lambda: None,
        limits=Limits(
            rows=_MAX_ROWS, size_bytes=settings.parquet_max_file_bytes, age_s=settings.parquet_flush_interval_s
        ),
        total_bytes=_BUDGET_FILES * settings.parquet_max_file_bytes,
    )
