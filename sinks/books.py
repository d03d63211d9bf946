"""The books: requests in the log = outcomes = rows in Postgres = rows in Parquet, counted by nobody's counters.

Requests are counted from the request topics themselves, by the gate's own rule of what is one request, but in
code of its own: the books are to find the gate's mistakes, not to share them.
"""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, TopicPartition
from google.protobuf.message import DecodeError
from sqlalchemy import exists, func, select

from runtime.data_tables import erasures
from runtime.database import connect
from runtime.errors import Poison, Unavailable
from runtime.kafka import Record, build_consumer, check_consumed, end_positions, record_of
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from runtime.tables import inference_log
from schemas import headers as h
from schemas.ids import content_digest
from schemas.messages import InferenceRequest
from schemas.topics import FLEET_REQUESTS_PATTERN, OUTCOMES, REQUESTS
from sinks.arrow_schemas import OUTCOMES_DATASET
from sinks.marks import Partition
from sinks.outcomes import decode_outcome
from sinks.parquet_files import read_column
from sinks.storage import open_storage

#: A retry is answered with the first outcome within this time; afterwards the same id is another request.
_IDENTITY_WINDOW_MS = 300_000
_SILENCE_S = 30.0
_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class Books:
    """What was found. Each request must have exactly one outcome, row and Parquet row."""

    requests: int
    outcomes: int
    postgres_rows: int
    parquet_rows: int
    #: Records on request topics that repeat a request: same identity, same content, within the window.
    retries: int = 0
    #: Records on request topics that no request can be read from: they are dead letters.
    undecodable: int = 0
    #: Outcome records beyond the first of their request: redeliveries, which the sinks drop.
    repeated_outcomes: int = 0
    #: Parquet rows beyond the first of their request.
    repeated_parquet_rows: int = 0
    #: Outcome records that cannot be read.
    unreadable_outcomes: int = 0
    #: Requests whose customers had them erased: they stand in none of the counts above.
    erased: int = 0
    #: Code -> outcomes that ended with it; "ok" for actions.
    outcomes_by_code: dict[str, int] = field(default_factory=dict)

    @property
    def balanced(self) -> bool:
        return (
            self.requests == self.outcomes == self.postgres_rows == self.parquet_rows
            and self.repeated_parquet_rows == 0
        )

    def explain(self) -> str:
        """The table, and what its first difference points at."""
        lines = [f"{text:<44}{number:>10}" for text, number in self._table()]
        return "\n".join([*lines, self._verdict()])

    def _table(self) -> Iterator[tuple[str, int]]:
        yield "distinct requests in the log", self.requests
        yield "outcomes in the log", self.outcomes
        for code, number in sorted(self.outcomes_by_code.items()):
            yield f"  {code}", number
        yield "rows in inference_log", self.postgres_rows
        yield "rows in Parquet outcomes", self.parquet_rows
        yield "counted apart: retries", self.retries
        yield "counted apart: undecodable requests", self.undecodable
        yield "counted apart: repeated outcome records", self.repeated_outcomes
        yield "counted apart: unreadable outcome records", self.unreadable_outcomes
        yield "counted apart: erased requests", self.erased

    def _verdict(self) -> str:
        if self.balanced:
            return "The books balance."
        problems = [
            (self.outcomes - self.requests, "outcomes", "look at the gates' and workers' logs and lag"),
            (self.postgres_rows - self.outcomes, "Postgres rows", "look at the log of `sink postgres` and its lag"),
            (self.parquet_rows - self.outcomes, "Parquet rows", "look at the log of `sink parquet` and its lag"),
            (self.repeated_parquet_rows, "repeated Parquet rows", "two files hold the same outcome"),
        ]
        found = [
            f"{abs(number)} {what} too {'many' if number > 0 else 'few'}: {hint}"
            for number, what, hint in problems
            if number
        ]
        return "The books do not balance: " + "; ".join(found) + "."


#: Customer -> requests appended up to then, in ms, are erased.
Erased = Mapping[str, int]


def is_erased(erased: Erased, customer_id: str, requested_at_ms: int) -> bool:
    return requested_at_ms <= erased.get(customer_id, -1)


class RequestCount:
    """Counts distinct requests of one partition number. Records of a topic come in offset order."""

    def __init__(self, identity_window_ms: int) -> None:
        self._window_ms = identity_window_ms
        #: Identity -> content and append time of its first request within the window.
        self._first: dict[tuple[str, str, str], tuple[bytes, int]] = {}
        #: Customer -> append times of distinct requests, ms.
        self._times: defaultdict[str, list[int]] = defaultdict(list)
        self.retries = 0
        self.undecodable = 0

    def add(self, record: Record, customer_id: str | None) -> None:
        try:
            request = InferenceRequest.FromString(record.value or b"")
        except DecodeError:
            request = InferenceRequest()
        if not customer_id or not (request.request_id or request.robot_id):
            self.undecodable += 1
            return
        identity = (customer_id, request.robot_id, request.request_id)
        digest = content_digest(request)
        first = self._first.get(identity)
        if first is None or record.timestamp_ms - first[1] > self._window_ms:
            self._first[identity] = (digest, record.timestamp_ms)
            self._times[customer_id].append(record.timestamp_ms)
        elif first[0] == digest:
            self.retries += 1
        else:
            # The id with other content: a request of its own, which is refused.
            self._times[customer_id].append(record.timestamp_ms)

    @property
    def distinct(self) -> int:
        return sum(map(len, self._times.values()))

    def erased(self, erased: Erased) -> int:
        """How many of the distinct ones are."""
        times = self._times
        return sum(is_erased(erased, customer, at) for customer in erased for at in times.get(customer, []))


class OutcomeCount:
    """Counts distinct outcomes."""

    def __init__(self) -> None:
        #: Row id -> customer and append time of the request, ms.
        self._rows: dict[str, tuple[str, int]] = {}
        self.records = 0
        self.unreadable = 0
        self.codes: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        try:
            outcome = decode_outcome(record)
        except Poison:
            self.unreadable += 1
            return
        self.records += 1
        if outcome.row_id not in self._rows:
            self._rows[outcome.row_id] = (outcome.request.customer_id, outcome.request.requested_at_ms)
            self.codes[outcome.rejection.code if outcome.HasField("rejection") else "ok"] += 1

    @property
    def distinct(self) -> int:
        return len(self._rows)

    def erased(self, erased: Erased) -> set[str]:
        """Row ids of those that are."""
        if not erased:
            return set()
        return {row_id for row_id, (customer, at) in self._rows.items() if is_erased(erased, customer, at)}


def read_books(settings: Settings, wait_s: float = 0.0) -> Books:
    """Count everything, again and again until it balances or `wait_s` is over.

    Holds from the beginning of the request topics: what their retention has deleted is missing from
    the first line. Raises Unavailable while Kafka, Postgres or the storage is away.
    """
    deadline = Deadline(wait_s)
    nap = threading.Event()
    with closing(Audit(settings)) as audit:
        while True:
            found = audit.look()
            if found.balanced or deadline.passed:
                return found
            nap.wait(min(_PAUSE_S, deadline.remaining_s))


def books(settings: Settings, wait_s: float = 30.0) -> int:
    """Print the books; 0 if they balance, else 1."""
    found = read_books(settings, wait_s)
    print(found.explain())
    return 0 if found.balanced else 1


def _fleets_in_the_log(consumer: Consumer) -> dict[str, str]:
    """Request topic -> fleet, of every fleet whose topic is there: one that was removed has its outcomes still."""
    try:
        topics = consumer.list_topics(timeout=10).topics
    except KafkaException as error:
        raise Unavailable(f"Kafka does not answer: {error.args[0].str()}") from error
    found = {topic: re.fullmatch(FLEET_REQUESTS_PATTERN, topic) for topic in topics}
    return {topic: match[1] for topic, match in found.items() if match is not None}


class Audit:
    """Reads on from where it last looked: logs only grow, and files of the lake never change."""

    def __init__(self, settings: Settings) -> None:
        self._window_ms = max(_IDENTITY_WINDOW_MS, int(settings.dedup_window_s * 1000))
        self._requests: dict[int, RequestCount] = {}
        self._outcomes = OutcomeCount()
        self._lake_rows: Counter[object] = Counter()
        self._lake_files: set[str] = set()
        self._storage = open_storage(settings)
        self._database = connect(settings, "vlastream-books", pool_size=1, statement_timeout_s=60.0)
        self._consumer = build_consumer(settings, "vlastream-books", group=None)
        self._fleet_of = _fleets_in_the_log(self._consumer)
        self._positions: dict[Partition, int] = {}

    def close(self) -> None:
        self._consumer.close()
        self._database.close()

    def look(self) -> Books:
        # Requests first: what comes in meanwhile stands at most in the later counts, until the next look.
        for topic in (REQUESTS, *self._fleet_of):
            for record in self._new_records(topic):
                customer_id = self._fleet_of.get(topic) or record.headers.get(h.CUSTOMER_ID)
                self._requests.setdefault(record.partition, RequestCount(self._window_ms)).add(record, customer_id)
        for record in self._new_records(OUTCOMES):
            self._outcomes.add(record)
        self._read_lake()
        requests = self._requests.values()
        erased = self._erased()
        gone = self._outcomes.erased(erased)
        erased_requests = sum(count.erased(erased) for count in requests)
        return Books(
            requests=sum(count.distinct for count in requests) - erased_requests,
            outcomes=self._outcomes.distinct - len(gone),
            postgres_rows=self._postgres_rows(),
            parquet_rows=sum(row_id not in gone for row_id in self._lake_rows),
            erased=erased_requests,
            retries=sum(count.retries for count in requests),
            undecodable=sum(count.undecodable for count in requests),
            repeated_outcomes=self._outcomes.records - self._outcomes.distinct,
            repeated_parquet_rows=self._lake_rows.total() - len(self._lake_rows),
            unreadable_outcomes=self._outcomes.unreadable,
            outcomes_by_code=dict(self._outcomes.codes),
        )

    def _new_records(self, topic: str) -> Iterator[Record]:
        """What a topic holds up to its present end and was not read yet. Raises Unavailable where it does not come."""
        ends: dict[int, int] = {}
        for partition, end in end_positions(self._consumer, topic).items():
            low, _ = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=5.0)
            place = Partition(topic, partition)
            self._positions[place] = max(self._positions.get(place, 0), low)
            if self._positions[place] < end:
                ends[partition] = end
        self._consumer.assign([TopicPartition(topic, p, self._positions[Partition(topic, p)]) for p in ends])
        silence = Deadline(_SILENCE_S)
        while ends:
            message = self._consumer.poll(0.2)
            if message is None or not check_consumed(message):
                if silence.passed:
                    raise Unavailable(f"{topic} was not read to its end: nothing came for {_SILENCE_S:.0f} s")
                continue
            silence = Deadline(_SILENCE_S)
            record = record_of(message)
            if record.offset < ends.get(record.partition, 0):
                self._positions[Partition(topic, record.partition)] = record.offset + 1
                yield record
            if record.offset + 1 >= ends.get(record.partition, 0):
                ends.pop(record.partition, None)

    def _read_lake(self) -> None:
        self._storage.ping()
        for file in list(self._storage.files(f"{OUTCOMES_DATASET}/")):
            if file.key not in self._lake_files:
                self._lake_rows.update(read_column(self._storage, file, "row_id"))
                self._lake_files.add(file.key)

    def _postgres_rows(self) -> int:
        """Rows but those that are to be erased, whether they are gone by now or not."""
        going = exists().where(
            erasures.c.customer_id == inference_log.c.customer_id,
            inference_log.c.created_at <= erasures.c.erased_before,
        )
        with self._database.begin() as connection:
            return connection.execute(select(func.count()).select_from(inference_log).where(~going)).scalar_one()

    def _erased(self) -> dict[str, int]:
        with self._database.begin() as connection:
            rows = connection.execute(select(erasures.c.customer_id, erasures.c.erased_before)).all()
        return {customer: round(before.timestamp() * 1000) for customer, before in rows}
