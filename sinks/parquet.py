"""Role `sink parquet`: accepted observations and all outcomes as Parquet on S3 or in a folder."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from runtime.consent import ConsentList
from runtime.fleets.registry import with_registered_fleets
from runtime.kafka import Record
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas import headers as h
from schemas.card_files import load_cards
from schemas.topics import EPISODES, FEEDBACK, OUTCOMES, PARQUET_GROUP, accepted_topic, episodes_topic
from sinks.arrow_schemas import EPISODES_DATASET, FEEDBACK_DATASET, OBSERVATIONS, OUTCOMES_DATASET, SCHEMAS
from sinks.consent import ConsentView
from sinks.lake_data_rows import episode_entry, feedback_entry
from sinks.lake_rows import observation_entry, outcome_entry
from sinks.marks import Batch, Entry, Limits, Mark, Partition
from sinks.parquet_files import encode, file_key, newest_file, read_mark
from sinks.protection import Protection
from sinks.rows import Row
from sinks.service import serve
from sinks.storage import AlreadyExists, Storage, open_storage
from sinks.store import Fenced

NAME = PARQUET_GROUP
ACCEPTED_PREFIX = "vla.accepted."

#: Beyond it a file would grow for want of bytes: small rows are cut by number.
_MAX_ROWS = 100_000
#: What all buffers together may hold: a largest file, and the next one beside it.
_BUDGET_FILES = 2


class ParquetStore:
    """Writes batches as files that never replace another. Raises Unavailable while the storage is away."""

    server = "storage"

    def __init__(self, storage: Storage, metrics: Metrics, protection: Protection, sink: str = NAME) -> None:
        self._storage = storage
        self._protection = protection
        self._metrics = metrics
        self._sink = sink

    def ping(self) -> None:
        self._storage.ping()

    def dataset(self, topic: str) -> str:
        if topic in (OUTCOMES, FEEDBACK):
            return OUTCOMES_DATASET if topic == OUTCOMES else FEEDBACK_DATASET
        return OBSERVATIONS if topic.startswith(ACCEPTED_PREFIX) else EPISODES_DATASET

    def open(self, partition: Partition) -> Mark:
        newest = newest_file(self._storage, self.dataset(partition.topic), partition)
        return read_mark(self._storage, newest) if newest is not None else Mark()

    def write(self, partition: Partition, batch: Batch[Row]) -> None:
        """Create the next file of the partition's chain. Raises Fenced where somebody else has."""
        dataset = self.dataset(partition.topic)
        start = batch.before.next_offset
        key = file_key(dataset, batch.entries[0].cut, partition, start)
        data = self._encoded(batch, SCHEMAS[dataset], partition)
        try:
            self._storage.create(key, data)
        except AlreadyExists as error:
            raise Fenced(str(error)) from error
        self._metrics.sink_objects.labels(self._sink, dataset).inc()
        self._metrics.sink_bytes.labels(self._sink, dataset).inc(len(data))

    def _encoded(self, batch: Batch[Row], schema: pa.Schema, partition: Partition) -> bytes:
        """The file's content. What was erased while the batch waited is left out; an empty file keeps the chain."""
        kept = [(row, self._protection.protected(row)) for row in batch.rows if self._protection.may_stay(row)]
        while True:
            # Pictures take seconds to protect, and large files to encode: an erasure may have come meanwhile, and what
            # is written later than `etl.erasures.SETTLED_AFTER` behind it nobody looks for again.
            kept = [(row, safe) for row, safe in kept if self._protection.may_stay(row)]
            data = encode([safe for _, safe in kept], schema, partition, batch.before.next_offset, batch.after)
            if all(self._protection.may_stay(row) for row, _ in kept):
                return data


def deployments_by_topic(settings: Settings) -> dict[str, str]:
    """Accepted topic -> deployment, of every model card."""
    cards = load_cards(settings.cards_dir)
    return {accepted_topic(card.deployment): card.deployment for card in cards.models}


class Decoder:
    """A record of any of the sink's topics as a row of its dataset. Raises Skip or Poison."""

    def __init__(self, *, deployments: Mapping[str, str], fleet_of: Mapping[str, str], consents: ConsentList) -> None:
        self._deployments = deployments
        self._fleet_of = fleet_of
        self._consents = consents

    def __call__(self, record: Record) -> Entry[Row]:
        if record.topic == OUTCOMES:
            return outcome_entry(record)
        if record.topic in self._deployments:
            return observation_entry(record, self._deployments[record.topic])
        if record.topic == FEEDBACK:
            return feedback_entry(record, self._consents)
        customer = self._fleet_of.get(record.topic) or record.headers.get(h.CUSTOMER_ID, "")
        return episode_entry(record, customer, self._consents)


def main(settings: Settings) -> int:
    """Run the role until it is told to stop; returns its exit status."""
    deployments = deployments_by_topic(settings)
    fleet_of = {episodes_topic(fleet): fleet for fleet in with_registered_fleets(settings).fleets}
    storage = open_storage(settings)
    view = ConsentView(settings, f"{NAME}-{settings.role_instance}")
    protection = Protection(view.consents, settings.anonymization_hash_salt.get_secret_value())
    return serve(
        settings,
        name=NAME,
        topics=[*deployments, OUTCOMES, FEEDBACK, EPISODES, *fleet_of],
        decode=Decoder(deployments=deployments, fleet_of=fleet_of, consents=view.consents),
        store=lambda metrics: ParquetStore(storage, metrics, protection),
        close_store=lambda: None,
        consent=view,
        limits=Limits(
            rows=_MAX_ROWS, size_bytes=settings.parquet_max_file_bytes, age_s=settings.parquet_flush_interval_s
        ),
        total_bytes=_BUDGET_FILES * settings.parquet_max_file_bytes,
    )
