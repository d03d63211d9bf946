"""The gate's memory: which requests it has seen, what became of them, and who waits for the answer.

Rows live in a mapping (Faust's table in the product), keyed by row id; the indexes beside it are derived
from the rows and built again whenever partitions move. Windows are measured in the broker's append time, so
that a replay decides as the first run did. Everything here is pure bookkeeping for one event loop.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, MutableMapping
from dataclasses import dataclass
from itertools import islice

from google.protobuf.message import DecodeError

from runtime.errors import Fatal
from schemas import headers as h
from schemas import ids
from schemas.codes import Code
from schemas.headers import Source
from schemas.messages import (
    ActionMatrix,
    InferenceRequest,
    LastChunk,
    ReplyAddress,
    RequestRecord,
    RequestSummary,
    TableValue,
)
from schemas.topics import GATE_CHANGELOG

#: Longest distance between a request and a retry that is answered with the first outcome.
IDENTITY_WINDOW_MS = 300_000
#: How long a robot's last chunk is kept for the next one to continue. Robot ids are the callers' choice: who takes a
#: new one for each episode must not fill the table for ever.
CHUNK_WINDOW_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class New:
    """Never seen within the window."""


@dataclass(frozen=True, slots=True)
class Redelivery:
    """The very same source record again: forward it again, nothing else."""

    record: RequestRecord


@dataclass(frozen=True, slots=True)
class RetryOf:
    """Another record with the same identity and content: it gets the first one's outcome."""

    row_id: str
    record: RequestRecord


@dataclass(frozen=True, slots=True)
class Reused:
    """Another record with the same identity and other content."""


Standing = New | Redelivery | RetryOf | Reused


class RequestTable:
    """Rows of the partitions that this process owns. `dedup_window_ms` 0 switches the duplicate window off."""

    def __init__(self, store: MutableMapping[bytes, bytes], dedup_window_ms: int) -> None:
        self._store = store
        self._dedup_window_ms = dedup_window_ms
        self._keep_ms = max(dedup_window_ms, IDENTITY_WINDOW_MS)
        self._records: dict[str, RequestRecord] = {}
        self._by_identity: dict[str, str] = {}
        self._by_content: dict[str, str] = {}
        self._chunks: dict[str, LastChunk] = {}
        #: Row ids of each partition in append order; the head is the next one to leave.
        self._aging: dict[int, deque[str]] = defaultdict(deque)
        #: When each chunk of a partition was decided, the oldest first.
        self._chunk_ages: dict[int, dict[str, int]] = defaultdict(dict)

    def __len__(self) -> int:
        return len(self._records)

    def restore(self, partitions: Collection[int]) -> None:
        """Build the indexes from the rows of these partitions, and from no others.

        Raises Fatal for what is no row. It may stand in a row's place: to go on without that row could decide a
        request a second time.
        """
        for index in (self._records, self._by_identity, self._by_content, self._chunks, self._aging, self._chunk_ages):
            index.clear()
        rows: list[tuple[str, RequestRecord]] = []
        chunks: list[tuple[str, LastChunk]] = []
        for key, value in list(self._store.items()):
            name, row = _row_of(key, value)
            if row.WhichOneof("kind") == "chunk":
                chunks.append((name, row.chunk))
            elif row.request.source.partition in partitions:
                rows.append((name, row.request))
        for row_id, record in sorted(rows, key=lambda item: (item[1].appended_at_ms, item[1].source.offset)):
            self._index(row_id, record)
        for name, chunk in sorted(chunks, key=lambda item: item[1].decided_at_ms):
            # One of before chunks had a partition stays until its robot gets another.
            if not chunk.HasField("source_partition"):
                self._chunks[name] = chunk
            elif chunk.source_partition in partitions:
                self._index_chunk(name, chunk)

    # --- the request agent's questions

    def standing(self, row_id: str, record: RequestRecord) -> Standing:
        """How a record that has just been read stands to what is known."""
        mine = self._records.get(row_id)
        if mine is not None:
            return Redelivery(mine)
        first_id = self._by_identity.get(_identity(record))
        first = self._records.get(first_id) if first_id is not None else None
        if first is None or first_id is None or record.appended_at_ms - first.appended_at_ms > self._keep_ms:
            return New()
        # A row that was made from its completion knows no digest until its request is read: the identity has to do.
        return RetryOf(first_id, first) if first.digest in (record.digest, b"") else Reused()

    def is_duplicate(self, row_id: str, record: RequestRecord) -> bool:
        """Whether another request brought this observation within the window and was not refused."""
        if self._dedup_window_ms == 0:
            return False
        other_id = self._by_content.get(_content(record))
        other = self._records.get(other_id) if other_id is not None else None
        return (
            other is not None
            and other_id != row_id
            and record.appended_at_ms - other.appended_at_ms <= self._dedup_window_ms
        )

    def remember(self, row_id: str, record: RequestRecord) -> None:
        """Record first, with the source; forward afterwards: a crash in between is a redelivery."""
        self._write(row_id, record)
        self._index(row_id, record)

    def wait(self, row_id: str, address: ReplyAddress) -> None:
        """Remember one more address for the outcome of a request that is not decided yet."""
        record = self._records[row_id]
        if address not in record.waiting:
            record.waiting.append(address)
            self._write(row_id, record)

    def complete(self, row_id: str, record: RequestRecord) -> None:
        """Give a row that was adopted what only its request tells: the digest of its content, and who waits."""
        row = self._records[row_id]
        self._by_content.pop(_content(row), None)
        row.digest = record.digest
        if not row.decided:
            row.waiting.extend(address for address in record.waiting if address not in row.waiting)
        self.remember(row_id, row)

    # --- the action agent's questions

    def adopt(self, row_id: str, summary: RequestSummary, now_ms: int, refusal: str = "") -> RequestRecord | None:
        """Make the row of a completion whose request this process never recorded, None where it is none of ours.

        The process that forwarded the request may have ended before its changelog record reached the broker. The
        completion is trusted as far as its row id, which only the gate could derive, fits what it says.
        refusal: its code; a reused id must not stand for the request that had the id first.
        """
        source = h.Source(summary.source.topic, summary.source.partition, summary.source.offset)
        derived = ids.row_id(summary.customer_id, summary.robot_id, summary.request_id, source)
        if derived != row_id or now_ms - summary.requested_at_ms > self._keep_ms:
            return None
        record = RequestRecord(
            customer_id=summary.customer_id,
            robot_id=summary.robot_id,
            request_id=summary.request_id,
            episode_id=summary.episode_id,
            step=summary.step,
            source=summary.source,
            appended_at_ms=summary.requested_at_ms,
            deadline_ms=summary.deadline_ms,
            refusal=refusal,
        )
        self.remember(row_id, record)
        return record

    def get(self, row_id: str) -> RequestRecord | None:
        return self._records.get(row_id)

    def decide(self, row_id: str, outcome_offset: int, *, refused: bool) -> None:
        """Note the outcome, once: the first one wins. A refused content may be sent again.

        A row that is not there belongs to a partition that left meanwhile: its new owner reads the completion again.
        """
        record = self._records.get(row_id)
        if record is None or record.decided:
            return
        record.decided = True
        record.outcome_offset = outcome_offset
        record.refused = refused
        del record.waiting[:]
        if refused and self._by_content.get(_content(record)) == row_id:
            del self._by_content[_content(record)]
        self._write(row_id, record)

    def chunk_before(self, customer_id: str, robot_id: str, source: Source) -> LastChunk | None:
        """The chunk that this robot got last, if its request lies before `source` in the same topic."""
        chunk = self._chunks.get(_robot(customer_id, robot_id))
        earlier = chunk is not None and chunk.source_topic == source.topic and chunk.source_offset < source.offset
        return chunk if earlier else None

    def is_overtaken(self, customer_id: str, robot_id: str, source: Source, deployment: str) -> bool:
        """Whether this robot already got a chunk of another deployment for a later request than `source`.

        Within a deployment its worker keeps a robot's order; between two only this does, while a robot moves.
        """
        chunk = self._chunks.get(_robot(customer_id, robot_id))
        later = chunk is not None and chunk.source_topic == source.topic and chunk.source_offset > source.offset
        return later and chunk is not None and chunk.deployment != deployment

    def remember_chunk(self, customer_id: str, robot_id: str, chunk: LastChunk) -> None:
        key = _robot(customer_id, robot_id)
        self._index_chunk(key, chunk)
        self._store[key.encode()] = TableValue(chunk=chunk).SerializeToString()

    # --- housekeeping

    def evict(self, partition: int, now_ms: int, limit: int = 16) -> int:
        """Let go of decided rows beyond the window, and of chunks beyond theirs, at most `limit` of each.

        Returns how many rows went. One that is not decided stays, however old it is: its outcome is still to come.
        """
        self._evict_chunks(partition, now_ms, limit)
        aging = self._aging[partition]
        gone = 0
        for _ in range(min(limit, len(aging))):
            row_id = aging[0]
            record = self._records.get(row_id)
            if record is not None and now_ms - record.appended_at_ms <= self._keep_ms:
                break
            aging.popleft()
            if record is None:
                continue
            if not record.decided:
                aging.append(row_id)
                continue
            self._drop(row_id, record)
            gone += 1
        return gone

    def _evict_chunks(self, partition: int, now_ms: int, limit: int) -> None:
        ages = self._chunk_ages[partition]
        for key in list(islice(ages, limit)):
            if now_ms - ages[key] <= CHUNK_WINDOW_MS:
                break
            del ages[key]
            self._chunks.pop(key, None)
            self._store.pop(key.encode(), None)

    def _index_chunk(self, key: str, chunk: LastChunk) -> None:
        before = self._chunks.get(key)
        if before is not None:
            self._chunk_ages[before.source_partition].pop(key, None)
        self._chunks[key] = chunk
        self._chunk_ages[chunk.source_partition][key] = chunk.decided_at_ms

    def _drop(self, row_id: str, record: RequestRecord) -> None:
        del self._records[row_id]
        for index, key in ((self._by_identity, _identity(record)), (self._by_content, _content(record))):
            if index.get(key) == row_id:
                del index[key]
        self._store.pop(row_id.encode(), None)

    def _write(self, row_id: str, record: RequestRecord) -> None:
        self._store[row_id.encode()] = TableValue(request=record).SerializeToString()

    def _index(self, row_id: str, record: RequestRecord) -> None:
        if row_id not in self._records:
            self._aging[record.source.partition].append(row_id)
        self._records[row_id] = record
        if record.refusal != Code.REQUEST_ID_REUSED:
            self._by_identity[_identity(record)] = row_id
        # Only what went on to a policy stands in the way of the same observation.
        if not record.refusal and not record.refused:
            self._by_content[_content(record)] = row_id


def _row_of(key: bytes, value: bytes) -> tuple[str, TableValue]:
    """Raises Fatal for what no gate has written."""
    try:
        name, row = key.decode(), TableValue.FromString(value)
    except (UnicodeDecodeError, DecodeError):
        row = TableValue()
    if row.WhichOneof("kind") is None:
        raise Fatal(
            f"{GATE_CHANGELOG} holds a record that no gate has written, with the key {key.hex()} (hex): see "
            "GateChangelogDamaged in docs/runbook.md"
        )
    return name, row


def record_of(
    request: InferenceRequest,
    *,
    customer_id: str,
    source: Source,
    appended_at_ms: int,
    deadline_ms: int,
    address: ReplyAddress | None,
) -> tuple[str, RequestRecord]:
    """Row id and row of a request that has just been read."""
    record = RequestRecord(
        customer_id=customer_id,
        robot_id=request.robot_id,
        request_id=request.request_id,
        episode_id=request.episode_id,
        step=request.step,
        digest=ids.content_digest(request),
        appended_at_ms=appended_at_ms,
        deadline_ms=deadline_ms,
        waiting=[address] if address is not None else [],
    )
    record.source.topic = source.topic
    record.source.partition = source.partition
    record.source.offset = source.offset
    return ids.row_id(customer_id, request.robot_id, request.request_id, source), record


def last_chunk(actions: ActionMatrix, *, source: Source, episode_id: str, deployment: str, at_ms: int) -> LastChunk:
    return LastChunk(
        source_offset=source.offset,
        source_topic=source.topic,
        source_partition=source.partition,
        episode_id=episode_id,
        actions=actions,
        deployment=deployment,
        decided_at_ms=at_ms,
    )


def _identity(record: RequestRecord) -> str:
    return ids.identity(record.customer_id, record.robot_id, record.request_id)


def _content(record: RequestRecord) -> str:
    parts = (record.customer_id, record.robot_id, record.episode_id, str(record.step), record.digest.hex())
    return "\x1f".join(parts)


def _robot(customer_id: str, robot_id: str) -> str:
    return f"robot\x1f{customer_id}\x1f{robot_id}"
