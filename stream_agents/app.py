"""The Faust app `gate`: two agents over one table, in one process for each partition of a robot.

What Faust is used for: consuming, the table with its changelog, and moving partitions. What it is not used
for: publishing (it is not idempotent there), windows, and acknowledging by exception.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import faust
from aiokafka.errors import IllegalStateError
from faust.auth import SASLCredentials, SSLCredentials

from runtime.errors import Fatal
from runtime.kafka import MAX_RECORD_BYTES, Record, ssl_context
from runtime.metrics import Metrics
from runtime.settings import Settings
from schemas.topics import GATE_APP, GATE_CHANGELOG, GATE_TABLE, RESULTS
from stream_agents.delivery import end_process
from stream_agents.lanes import Lanes
from stream_agents.log_reader import LogReader
from stream_agents.takeover import (
    ChangelogWrites,
    Progress,
    committed_offset,
    hold_flow_during_recovery,
    known_end,
    seek_uncommitted_too,
    wait_before_partitions_leave,
)

log = logging.getLogger(__name__)

Handle = Callable[[Record], Awaitable[None]]
#: Records of both agents that wait for their acknowledgements together.
_RECORDS_AT_ONCE = 64
#: Shorter than the time that the group gives its members to join again.
_DRAIN_TIMEOUT_S = 5.0
_NEVER_S = 30 * 86_400.0


def build_app(settings: Settings, data_dir: Path) -> Any:
    """A Faust app with the settings that its delivery depends on; each is explained in ARCHITECTURE.md."""
    session_s = settings.kafka_session_timeout_ms / 1000
    return faust.App(
        GATE_APP,
        broker=f"kafka://{settings.kafka_bootstrap_servers.replace(',', ';kafka://')}",
        broker_credentials=broker_credentials(settings),
        datadir=str(data_dir),
        processing_guarantee="at_least_once",
        store="memory://",
        table_standby_replicas=0,
        key_serializer="raw",
        value_serializer="raw",
        topic_allow_declare=False,
        topic_disable_leader=True,
        topic_partitions=settings.kafka_partitions,
        topic_replication_factor=settings.kafka_replication_factor,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=MAX_RECORD_BYTES * 2,
        stream_buffer_maxsize=128,
        stream_wait_empty=False,
        broker_commit_interval=1.0,
        broker_session_timeout=session_s,
        broker_heartbeat_interval=max(session_s / 6, 0.2),
        broker_rebalance_timeout=max(session_s * 2, 10.0),
        # aiokafka leaves the group after this time without a fetch, and does not join again before the next one: which
        # Faust does not begin while it has no partition (more gates than partitions), or while its flow is stopped.
        broker_max_poll_interval=_NEVER_S,
        producer_request_timeout=30.0,
        producer_max_request_size=MAX_RECORD_BYTES,
        # Writes to the changelog, for which nobody waits: several in one request save the broker work.
        producer_linger=0.01,
        web_enabled=False,
        web_tables_enabled=False,
        worker_redirect_stdouts=False,
    )


def broker_credentials(settings: Settings) -> Any:
    """How Faust's Kafka client proves who it is; None where Kafka is in plain text."""
    context = ssl_context(settings)
    if settings.kafka_security_protocol.startswith("SASL_"):
        return SASLCredentials(
            mechanism=settings.kafka_sasl_mechanism,
            username=settings.kafka_sasl_username,
            password=settings.kafka_sasl_password.get_secret_value(),
            ssl_context=context,
        )
    return SSLCredentials(context) if context is not None else None


class Gate:
    """Owns the app, its table and its two agents."""

    def __init__(
        self, app: Any, *, request_topics: list[str], partitions: int, log_reader: LogReader, metrics: Metrics
    ) -> None:
        self.app = app
        self._log_reader = log_reader
        self._metrics = metrics
        self._progress = Progress()
        self._lanes = Lanes(_RECORDS_AT_ONCE, end_process)
        self._recovered = False
        #: Agents that have a record in hand which they could not begin yet.
        self._held = 0
        #: Handled records whose changelog records are not acknowledged yet.
        self._recording: set[asyncio.Future[Any]] = set()
        self._partitions = partitions
        self._request_topics = request_topics
        self._table = app.Table(
            GATE_TABLE,
            key_type=bytes,
            value_type=bytes,
            partitions=partitions,
        )
        if self._table.changelog_topic.get_topic_name() != GATE_CHANGELOG:
            raise ValueError(f"Faust names the changelog {self._table.changelog_topic.get_topic_name()}")
        self._writes = ChangelogWrites(self._table)

    @property
    def store(self) -> MutableMapping[bytes, bytes]:
        return cast(MutableMapping[bytes, bytes], self._table)

    @property
    def recovered(self) -> bool:
        """Whether this process has joined its group and has its part of the table."""
        return self._recovered

    def install(self, *, on_request: Handle, on_completion: Handle, restore: Callable[[set[int]], None]) -> None:
        """Declare the agents; `restore` gets the partitions that this process owns, whenever they change."""

        def restored() -> None:
            owned = {tp.partition for tp in self.app.assignor.assigned_actives()}
            self._progress.moved(owned)
            try:
                restore(owned)
            except Fatal as error:
                # Faust would tell its own story of it.
                end_process(error)
            self._recovered = True
            self._metrics.rebalances.labels("recovered").inc()
            log.info("own partitions %s", sorted(owned), extra={"action": "assigned"})

        hold_flow_during_recovery(self.app, self._table, restored)
        self._agent("request", self._request_topics, on_request)
        self._agent("action", [RESULTS], on_completion)

    def _agent(self, name: str, topics: list[str], handle: Handle) -> None:
        channel = self.app.topic(
            *topics,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
            partitions=self._partitions,
        )

        async def agent(stream: Any) -> None:
            async for event in stream.events():
                self._held += 1
                try:
                    await self._advance(handle, event)
                except Exception as error:
                    log.exception("an agent cannot go on", extra={"action": "agent_failed"})
                    end_process(error)
                finally:
                    self._held -= 1

        self.app.agent(channel, name=f"{GATE_APP}-{name}")(agent)

    async def _advance(self, handle: Handle, event: Any) -> None:
        """Begin with a record, and before it with those that Faust did not hand on."""
        epoch, record = self._lanes.epoch, record_of_event(event)
        place = (record.topic, record.partition)
        missed = self._progress.missed(place, record.offset, committed_offset(self.app, event.message.tp))
        records = [record]
        if missed:
            found = await self._log_reader.read(*place, missed)
            self._progress.pass_over(place, missed, [lost.offset for lost in found])
            self._metrics.offset_gaps.inc(1 if found else 0)
            log.info(
                "Faust passed over %d records of %s/%d before offset %d; they are handled now",
                len(found),
                *place,
                record.offset,
                extra={"action": "read_again"},
            )
            records = [*found, record]
        for one in records:
            await self._lanes.start(place, partial(self._handle, handle, one, event), epoch)

    async def _handle(self, handle: Handle, record: Record, event: Any) -> None:
        # `event` is kept: Faust takes the changelog's partition from it, and refers to it weakly.
        self._metrics.records_consumed.labels(record.topic).inc()
        writes = self._writes.begin()
        await handle(record)
        recording = asyncio.gather(*writes)
        self._recording.add(recording)
        recording.add_done_callback(partial(self._recorded, record))

    def _recorded(self, record: Record, recording: asyncio.Future[Any]) -> None:
        """Finish a record once the broker has its rows. The lane does not wait for that: its next one may begin."""
        self._recording.discard(recording)
        if recording.cancelled():
            return
        if (error := recording.exception()) is not None:
            # The rows are in memory alone: a new process reads the record again.
            end_process(error)
        else:
            self._progress.finish((record.topic, record.partition), record.offset)

    def unread(self) -> dict[Any, range]:
        """By own partition, the offsets that no agent got yet; nothing while it recovers, or an agent is held up."""
        consumer = self.app.consumer
        if self.app.in_recovery or not consumer.flow_active or self._held:
            return {}
        topics = {*self._request_topics, RESULTS}
        return {
            tp: self._progress.unread((tp.topic, tp.partition), committed_offset(self.app, tp), known_end(self.app, tp))
            for tp in consumer.assignment()
            if tp.topic in topics
        }

    async def seek_back(self, partitions: Mapping[Any, int]) -> None:
        """Have records read again that no agent got."""
        for tp, offset in partitions.items():
            log.warning("reading %s/%d again from offset %d", *tp, offset, extra={"action": "read_again"})
            with suppress(IllegalStateError):  # it has moved to another gate, which reads it from the committed offset
                await self.app.consumer.seek_wait({tp: offset})

    async def _drain(self, *_: object) -> None:
        if await self._lanes.drain(_DRAIN_TIMEOUT_S) and self._recording:
            await asyncio.wait(set(self._recording), timeout=_DRAIN_TIMEOUT_S / 2)

    async def start(self) -> None:
        """Join the group and begin."""
        self.app.finalize()
        self._progress.install(self.app.consumer)
        seek_uncommitted_too(self.app)
        wait_before_partitions_leave(self.app, self._drain)
        await self.app.start()


def record_of_event(event: Any) -> Record:
    """A Faust event as a Record."""
    message = event.message
    headers = message.headers or []
    pairs = headers.items() if hasattr(headers, "items") else headers
    return Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value,
        timestamp_ms=round(message.timestamp * 1000),
        raw_headers=[(name, value if isinstance(value, bytes) else str(value or "").encode()) for name, value in pairs],
    )
