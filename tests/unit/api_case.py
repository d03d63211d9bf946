"""An API without its servers: the gateway answers from the test, keys come from dictionaries."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import httpx
from fastapi import FastAPI
from pydantic import SecretStr
from sqlalchemy import Executable, NullPool, create_engine
from sqlalchemy.exc import OperationalError

from ingest_api.app import Services, create_app
from ingest_api.console.letter_desk import Pile, entry_of
from ingest_api.console.log_frames import Place
from ingest_api.customer_admin import CustomerAdmin
from ingest_api.gateway import Question
from ingest_api.health import Dependency, Health
from ingest_api.key_admin import KeyAdmin
from ingest_api.key_stores import KeyRecord, reference_of_id
from ingest_api.keys import KeyRing, hash_key
from ingest_api.limits import Limits, NoLimits
from ingest_api.replies import Reply
from ingest_api.sessions import Sessions
from ingest_api.tokens import Tokens
from runtime.consent import ConsentList
from runtime.control import StopList
from runtime.database import Database
from runtime.dlq.letters import Letter
from runtime.dlq.replay import Cluster, Unfit, again
from runtime.embodiments import RobotTypes
from runtime.errors import Unavailable
from runtime.group_lag import GroupLag, watched_groups
from runtime.group_lag import Place as Partition
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.targets import Target
from runtime.topic_admin import declared_topics
from runtime.tracing import NoTracing, Tracing
from runtime.traffic import TrafficTable
from runtime.workers import LiveWorkers
from schemas.headers import Source
from schemas.messages import (
    ActionChunk,
    ActionMatrix,
    InferenceRequest,
    InferenceResult,
    Outcome,
    RequestSummary,
    SafetyMode,
    SafetyReport,
    StageTimes,
    WorkerHeartbeat,
)
from schemas.scopes import DEFAULT_SCOPES
from schemas.topics import CONSENT, CONTROL, EMBODIMENTS, EPISODES, FEEDBACK
from tests.cards import cards
from tests.in_memory import InMemoryBroker
from tests.pictures import jpeg

KEY = "vla_abcdefgh_" + "s" * 43
CUSTOMER = "customer-1"
NOW_US = 1_700_000_000_000_000


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

    def places(self, topics: Iterable[str]) -> list[Partition]:
        if self.away:
            raise Unavailable("away")
        return [(topic, 0) for topic in topics if topic in self.logs]

    def committed(self, group: str) -> dict[Partition, int]:
        return {(topic, 0): offset for (name, topic), offset in self.commits.items() if name == group}

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


def chunk_outcome(request: InferenceRequest, **changes: Any) -> Outcome:
    """Actions for a request: 4 steps of 3, all marks of time set, a deadline far ahead."""
    fields: dict[str, Any] = {
        "row_id": "row-1",
        "request": RequestSummary(
            request_id=request.request_id,
            robot_id=request.robot_id,
            robot_type=request.robot_type,
            model=request.model,
            episode_id=request.episode_id,
            step=request.step,
            deadline_ms=2**53,
        ),
        "chunk": ActionChunk(
            actions=ActionMatrix(horizon=4, dim=3, values=[0.1, 0.0, 1.0] * 4),
            names=["dx", "dy", "gripper"],
            units=["m", "m", "1"],
            control_rate_hz=10,
            safety=SafetyReport(
                score=0.9, mode=SafetyMode.SAFETY_MODE_REJECT, checks={"range": 0.9, "dims": 1.0}, modified=False
            ),
            result=InferenceResult(result_id="result-1", model_revision="abc", batch_size=3),
        ),
        "times": StageTimes(
            gate_start_us=NOW_US + 1_000,
            gate_end_us=NOW_US + 2_000,
            infer_start_us=NOW_US + 4_000,
            infer_end_us=NOW_US + 5_000,
            action_gate_start_us=NOW_US + 5_500,
            action_gate_end_us=NOW_US + 6_000,
        ),
        **changes,
    }
    return Outcome(**fields)


def acts(request: InferenceRequest) -> Reply:
    return Reply("c", chunk_outcome(request).SerializeToString())


@dataclass
class Api:
    """An application, what it stands on, and a client of it."""

    settings: Settings = field(
        default_factory=lambda: Settings(_env_file=None, database_url=SecretStr("postgresql://x"))
    )
    gateway: ScriptedGateway = field(default_factory=lambda: ScriptedGateway(acts))
    table: DictKeys = field(default_factory=lambda: DictKeys(key_record()))
    cache: DictKeys = field(default_factory=DictKeys)
    history: ListedHistory = field(default_factory=ListedHistory)
    metrics: Metrics = field(default_factory=Metrics)
    workers: LiveWorkers = field(default_factory=lambda: LiveWorkers(3.5, clock=lambda: 0.0, now=lambda: 0.0))
    traffic: TrafficTable = field(default_factory=TrafficTable)
    dependencies: dict[str, Dependency] = field(default_factory=dict)
    targets: list[Target] = field(default_factory=list)
    broker: InMemoryBroker = field(
        default_factory=lambda: InMemoryBroker({CONTROL: 1, CONSENT: 1, EMBODIMENTS: 1, EPISODES: 2, FEEDBACK: 2})
    )
    reader: ListedRows = field(default_factory=ListedRows)
    embedder: ScriptedEmbedder = field(default_factory=ScriptedEmbedder)
    limits: Limits = field(default_factory=NoLimits)
    #: Postgres is away, for what writes there; a test of its own has a real one.
    database: Database = field(default_factory=absent_database)
    tokens: Tokens | None = field(default_factory=lambda: Tokens("j" * 32))
    consents: ConsentList = field(default_factory=lambda: ConsentList("none", "partial"))
    robots: RobotTypes = field(default_factory=lambda: RobotTypes(cards()))
    clock: ManualClock = field(default_factory=ManualClock)
    tracing: Tracing = field(default_factory=NoTracing)
    offsets: ScriptedOffsets = field(default_factory=ScriptedOffsets)
    stops: StopList = field(default_factory=StopList)
    stops_known: bool = True
    log: HeldLog = field(default_factory=HeldLog)
    letters: HeldLetters = field(default_factory=HeldLetters)
    sent_forms: HeldForms = field(default_factory=HeldForms)
    app: FastAPI = field(init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.settings.stream_max_sessions, self.metrics)
        self.publisher = self.broker.publisher()
        watched = watched_groups(cards(), ())
        self.group_lag = GroupLag(
            offsets=self.offsets, groups=watched, metrics=self.metrics, clock=self.offsets.clock, now=lambda: 1000.0
        )
        self.beat()
        self.keys = KeyRing(
            cache=self.cache,
            table=self.table,
            ttl_s=5,
            stale_s=600,
            metrics=self.metrics,
            tokens=self.tokens,
            clock=self.clock,
        )
        health = Health(
            dependencies=self.dependencies,
            waiting_for=lambda: self.gateway.waiting_for,
            workers=self.workers,
            cards=cards(),
            metrics=self.metrics,
            weights_of=self.traffic.weights,
            group_lag=self.group_lag,
            clock=ManualClock(),
        )
        services = Services(
            cards=self.robots.cards,
            robots=self.robots,
            metrics=self.metrics,
            sessions=self.sessions,
            gateway=self.gateway,
            keys=self.keys,
            workers=self.workers,
            traffic=self.traffic,
            history=self.history,
            health=health,
            publisher=self.publisher,
            reader=self.reader,
            embedder=self.embedder,
            consents=self.consents,
            limits=self.limits,
            customers=CustomerAdmin(self.database),
            key_admin=KeyAdmin(self.database),
            tokens=self.tokens,
            topics=list(declared_topics(self.settings)),
            federate_targets=lambda: self.targets,
            group_lag=self.group_lag,
            stops=self.stops,
            stops_known=lambda: self.stops_known,
            log=self.log,
            letters=self.letters,
            sent_forms=self.sent_forms,
            tracing=self.tracing,
        )
        self.app = create_app(self.settings, services)

    def beat(self, **changes: Any) -> None:
        """A heartbeat of a worker."""
        fields = {"worker_id": "w-1", "deployment": "test-model-a", "model": "test-model", "device": "cpu", **changes}
        beat = WorkerHeartbeat(**fields)
        self.workers.update(beat.worker_id.encode(), beat.SerializeToString(), 0)

    def worker_leaves(self, worker_id: str = "w-1") -> None:
        self.workers.update(worker_id.encode(), None, 0)

    def client(self, key: str | None = KEY) -> httpx.AsyncClient:
        headers = {"authorization": f"Bearer {key}"} if key is not None else {}
        return httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://api", headers=headers)

    async def post(self, json: Any = None, *, key: str | None = KEY, **options: Any) -> httpx.Response:
        async with self.client(key) as client:
            content = {} if json is None else {"json": json}
            return await client.post("/v1/inference", **content, **options)

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


def body(**changes: Any) -> dict[str, Any]:
    """A good request; a field changed to ... is left out."""
    fields: dict[str, Any] = {
        "robot_id": "arm-1",
        "robot_type": "test_arm",
        "model": "test-model",
        "instruction": "push the red block left",
        "images": [{"camera": "base", "data": base64.b64encode(jpeg()).decode()}],
        "state": [0.5, 0.5],
        "episode_id": "e-1",
        "step": 7,
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def sandbox(folder: Path, **changes: Any) -> Settings:
    """Settings that read nothing of the environment's files."""
    return Settings(_env_file=None, stack_file=folder / "stack.json", **changes)
