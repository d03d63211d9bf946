"""An API on stand-ins for its servers, and requests and answers for it."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from pydantic import SecretStr

from ingest_api.app import Services, create_app
from ingest_api.customer_admin import CustomerAdmin
from ingest_api.health import Dependency, Health
from ingest_api.key_admin import KeyAdmin
from ingest_api.keys import KeyRing
from ingest_api.limits import Limits, NoLimits
from ingest_api.replies import Reply
from ingest_api.sessions import Sessions
from ingest_api.tokens import Tokens
from runtime.consent import ConsentList
from runtime.control import StopList
from runtime.database import Database
from runtime.embodiments import RobotTypes
from runtime.group_lag import GroupLag, watched_groups
from runtime.metrics import Metrics
from runtime.settings import Settings
from runtime.targets import Target
from runtime.topic_admin import declared_topics
from runtime.tracing import NoTracing, Tracing
from runtime.traffic import TrafficTable
from runtime.workers import LiveWorkers
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
from schemas.topics import CONSENT, CONTROL, EMBODIMENTS, EPISODES, FEEDBACK
from tests.cards import cards
from tests.in_memory import InMemoryBroker
from tests.pictures import jpeg
from tests.unit.api_stand_ins import (
    KEY,
    DictKeys,
    HeldForms,
    HeldLetters,
    HeldLog,
    ListedHistory,
    ListedRows,
    ManualClock,
    ScriptedEmbedder,
    ScriptedGateway,
    ScriptedOffsets,
    absent_database,
    key_record,
)

NOW_US = 1_700_000_000_000_000


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
