"""What stands in for the servers of an API in unit tests: dictionaries, lists, and a gateway that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from sqlalchemy import Executable, NullPool, create_engine
from sqlalchemy.exc import OperationalError

from ingest_api.console.letter_desk import Pile, entry_of
from ingest_api.console.log_frames import Place
from ingest_api.gateway import Question
from ingest_api.key_stores import KeyRecord, reference_of_id
from ingest_api.keys import hash_key
from ingest_api.replies import Reply
from runtime.broker_offsets import Place as Partition
from runtime.database import Database
from runtime.dlq.letters import Letter
from runtime.dlq.replay import Cluster, Unfit, again
from runtime.errors import Unavailable
from schemas.headers import Source
from schemas.messages import InferenceRequest, Outcome
from schemas.scopes import DEFAULT_SCOPES

KEY = "vla_abcdefgh_" + "s" * 43
CUSTOMER = "customer-1"


class ManualClock:
    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def key_record(key: str = KEY, **changes: Any) -> KeyRecord:
    fields: dict[str, Any] = {
        "key_hash": hash_key(key),
        "key_id": "k-1",
        "customer_id": CUSTOMER,
        "tier": "pro",
        "scopes": DEFAULT_SCOPES,
        "is_active": True,
        "customer_active": True,
        "expires_at_s": None,
        **changes,
    }
    return KeyRecord(**fields)


class DictKeys:
    """A key table and a key cache that can be taken away."""

    def __init__(self, *records: KeyRecord) -> None:
        self.records: dict[str, KeyRecord] = {}
        for record in records:
            self.add(record)
        self.written_at_s: dict[str, float] = {}
        self.away = False
        self.asked = 0

    def add(self, record: KeyRecord) -> None:
        self.records |= {record.key_hash: record, reference_of_id(record.key_id): record}

    def _ask(self) -> None:
        self.asked += 1
        if self.away:
            raise Unavailable("away, as the test wants it")

    def find(self, reference: str) -> KeyRecord | None:
        self._ask()
        return self.records.get(reference)

    def get(self, reference: str) -> tuple[KeyRecord, float] | None:
        self._ask()
        record = self.records.get(reference)
        return (record, self.written_at_s[reference]) if record is not None else None

    def put(self, reference: str, record: KeyRecord, at_s: float, *, keep_s: float) -> None:
        self._ask()
        self.records[reference] = record
        self.written_at_s[reference] = at_s


#: What the pipeline says to a request. An exception is what the gateway's future brings; None: nothing ever.
Answer = Callable[[InferenceRequest], Reply | Exception | None]


class ScriptedGateway:
    """The way through Kafka, played by the test."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.refuses: Exception | None = None
        self.waiting_for: list[str] = []
        self.asked: list[Question] = []
        self.requests: list[InferenceRequest] = []
        self.timeouts_s: list[float] = []
        #: To be called when the log has the record of the request with the same number.
        self.settle: list[Callable[[], None]] = []
        self.futures: list[asyncio.Future[Reply]] = []
        self.was_asked = asyncio.Event()

    def ask(
        self, question: Question, timeout_s: float, on_settled: Callable[[], None] | None = None
    ) -> asyncio.Future[Reply]:
        if self.refuses is not None:
            raise self.refuses
        self.asked.append(question)
        self.timeouts_s.append(timeout_s)
        self.settle.append(on_settled or (lambda: None))
        request = InferenceRequest.FromString(question.value)
        self.requests.append(request)
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.futures.append(future)
        self.was_asked.set()
        match self.answer(request):
            case None:
                pass
            case Exception() as error:
                future.set_exception(error)
            case Reply() as reply:
                future.set_result(reply)
        return future


class Absent(NullPool):
    """Connections to a Postgres that is not there."""

    def _do_get(self) -> NoReturn:
        raise OperationalError("", {}, Exception("away"))


def absent_database() -> Database:
    return Database(create_engine("postgresql+psycopg://", poolclass=Absent))


class ListedHistory:
    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.away = False

    def find(self, customer_id: str, request_id: str) -> list[dict[str, Any]]:
        if self.away:
            raise Unavailable("away")
        return self.rows.get((customer_id, request_id), [])


class ListedRows:
    """Answers every statement with the same rows, and keeps what was asked."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self.asked: list[Executable] = []
        self.away = False

    def rows(self, statement: Executable, settings: Sequence[tuple[str, str]] = ()) -> list[dict[str, Any]]:
        if self.away:
            raise Unavailable("away")
        self.asked.append(statement)
        return [dict(row) for row in self.found]


class ScriptedOffsets:
    """What a broker says of its groups: every topic has one partition."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        #: Topic -> first offset and end.
        self.logs: dict[str, tuple[int, int]] = {}
        #: Group and topic -> committed offset.
        self.commits: dict[tuple[str, str], int] = {}
        #: Topic and offset -> append time.
        self.appended: dict[tuple[str, int], int] = {}
        self.away = False

    def places(self) -> list[Partition]:
        if self.away:
            raise Unavailable("away")
        return [(topic, 0) for topic in self.logs]

    def committed(self, group: str, places: Sequence[Partition]) -> dict[Partition, int]:
        return {place: self.commits[group, place[0]] for place in places if (group, place[0]) in self.commits}

    def bounds(self, places: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        return {place: self.logs[place[0]] for place in places}

    def appended_at_ms(self, offsets: Mapping[Partition, int]) -> dict[Partition, int]:
        asked = {place: (place[0], offset) for place, offset in offsets.items()}
        return {place: self.appended[key] for place, key in asked.items() if key in self.appended}


class ScriptedEmbedder:
    def __init__(self) -> None:
        self.away = False

    async def embed(self, text: str, customer_id: str) -> list[float]:
        if self.away:
            raise Unavailable("no embedder answers")
        return [1.0] + [0.0] * 383


class HeldLog:
    """Records that the log still has, by their places."""

    def __init__(self) -> None:
        self.requests: dict[Source, InferenceRequest] = {}
        self.outcomes: dict[Source, Outcome] = {}
        self.asked: list[Place] = []
        self.away = ""

    async def request(self, place: Place) -> InferenceRequest | None:
        self._ask(place)
        return self.requests.get(place.source)

    async def outcome(self, place: Place) -> Outcome | None:
        self._ask(place)
        return self.outcomes.get(place.source)

    def _ask(self, place: Place) -> None:
        self.asked.append(place)
        if self.away:
            raise Unavailable(self.away)


class HeldLetters:
    """Dead letters that can still be read, and what was sent again."""

    def __init__(self, *letters: Letter) -> None:
        self.held = list(letters)
        self.sent: list[Letter] = []
        self.away = ""

    async def pile(self, topic: str) -> Pile:
        self._check()
        meant = [letter for letter in self.held if topic in ("", letter.topic)]
        entries = sorted(map(entry_of, meant), key=lambda entry: entry.died_at_ms, reverse=True)
        return Pile(sorted({letter.topic for letter in self.held}), entries)

    async def at(self, places: Sequence[Source]) -> tuple[list[Letter], Cluster]:
        self._check()
        by_place = {letter.place: letter for letter in self.held}
        partitions = {letter.topic: 4 for letter in self.held}
        found = [by_place[place] for place in places if place in by_place]
        return found, Cluster(partitions=partitions, results_ends={})

    async def send(self, letters: Sequence[Letter], cluster: Cluster) -> list[Source | Unfit]:
        self._check()
        self.sent += letters
        fits = [again(letter, cluster) for letter in letters]
        return [fit if isinstance(fit, Unfit) else Source(fit.topic, fit.partition, 100) for fit in fits]

    def _check(self) -> None:
        if self.away:
            raise Unavailable(self.away)


class HeldForms:
    """Forms that came."""

    def __init__(self) -> None:
        self.came: set[str] = set()
        self.away = False

    def is_first(self, form: str) -> bool:
        if self.away:
            raise Unavailable("Valkey does not answer")
        first = form not in self.came
        self.came.add(form)
        return first
