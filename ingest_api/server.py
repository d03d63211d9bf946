"""Role `api`: builds everything, serves until told to stop, ends in order."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import uvicorn
import uvloop
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from ingest_api.app import Services, create_app
from ingest_api.console.letter_desk import LetterDesk
from ingest_api.console.log_frames import Log, console_settings
from ingest_api.console.sent_forms import ValkeyForms
from ingest_api.gateway import KafkaGateway
from ingest_api.health import Dependency, Health
from ingest_api.history import PostgresHistory
from ingest_api.http_protocol import Room, descriptors_for, protocol_with
from ingest_api.key_stores import ValkeyKeys
from ingest_api.reading import PostgresReader
from ingest_api.search import KafkaQueryEmbedder
from ingest_api.sessions import Sessions
from ingest_api.tenancy import build_tenancy
from ingest_api.websocket import AbortingProtocol
from runtime.broker_offsets import KafkaOffsets
from runtime.consent import ConsentList
from runtime.control import StopList
from runtime.database import connect
from runtime.embodiments import RobotTypes
from runtime.errors import Fatal, Unavailable
from runtime.group_lag import INTERVAL_S, GroupLag, watched_groups
from runtime.kafka import build_admin, build_consumer, build_producer, wait_for_kafka
from runtime.lifecycle import Lifecycle
from runtime.metrics import Metrics
from runtime.periodic import Periodic
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.targets import targets_of
from runtime.topic_admin import declared_topics
from runtime.tracing import build_tracing
from runtime.traffic import TrafficTable
from runtime.view import CompactedView
from runtime.workers import LiveWorkers
from schemas.card_files import CardError, load_cards
from schemas.topics import CONSENT, CONTROL, EMBODIMENTS, REPLIES, REQUESTS, TRAFFIC, WORKERS

log = logging.getLogger(__name__)

#: Share of the shutdown time that requests which wait for their reply get; the rest is for flush and close.
_DRAIN_SHARE = 0.5
#: Time for the answers to requests whose reply is not waited for any longer.
_LAST_ANSWERS_S = 1
#: Longer than a robot pauses between frames, so that its connection is still there.
_KEEP_ALIVE_S = 75
#: The event loop, the reply reader and the publisher share the interpreter: Python's 5 ms would be felt by a reply.
_SWITCH_INTERVAL_S = 0.0005
#: Room in the producer's queue for what is no request: controls, feedback, events of episodes.
_OTHER_RECORDS_BYTES = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """What stands between this process and Kafka."""

    gateway: KafkaGateway
    views: list[CompactedView]
    producer: Producer


def main(settings: Settings) -> int:
    """Run one API process; returns its exit status."""
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    lifecycle = Lifecycle(settings.shutdown_timeout_s)
    with lifecycle.signals():
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(settings, lifecycle))
        except Exception as error:
            lifecycle.fail(error)
        return lifecycle.close()


async def _run(settings: Settings, lifecycle: Lifecycle) -> None:
    try:
        cards = load_cards(settings.cards_dir)
    except CardError as error:
        raise Fatal(str(error)) from error
    metrics = Metrics()
    tracing = build_tracing(settings, "api")
    lifecycle.on_close("traces", tracing.close)
    client_id = f"api-{settings.role_instance}"
    producer = build_producer(
        settings, client_id, queue_bytes=settings.inference_queue_max_bytes + _OTHER_RECORDS_BYTES
    )
    publisher = Publisher(producer, metrics, lifecycle.fail)
    lifecycle.on_close("publisher", lambda deadline: publisher.close(deadline.remaining_s))
    workers = LiveWorkers(settings.worker_timeout_s)
    consents = ConsentList(settings.default_consent_tier, settings.anonymization_level)
    traffic = TrafficTable()
    robots = RobotTypes(cards)
    build_view_consumer = partial(build_consumer, settings, f"{client_id}-view", group=None)
    views = [
        CompactedView(build_view_consumer, WORKERS, workers.update),
        CompactedView(build_view_consumer, CONSENT, consents.update),
        CompactedView(build_view_consumer, TRAFFIC, traffic.update),
        CompactedView(build_view_consumer, EMBODIMENTS, robots.update),
    ]
    # Of the console alone: requests are answered without it.
    stops = StopList()
    stop_view = CompactedView(build_view_consumer, CONTROL, stops.update)
    console_log = Log.of(settings, f"{client_id}-console")
    lifecycle.on_close("console log", console_log.close)
    gateway = KafkaGateway(
        publisher=publisher,
        build_consumer=partial(_reply_consumer, settings, f"{client_id}-replies"),
        partition=reply_partition(settings),
        capacity=settings.inference_queue_max_size,
        metrics=metrics,
        on_failure=lifecycle.fail,
    )
    lifecycle.on_close("replies", gateway.close)
    database = connect(settings, client_id)
    lifecycle.on_close("database", lambda deadline: database.close())
    valkey = ValkeyKeys.at(settings.redis_url.get_secret_value(), settings.secret_key.get_secret_value())
    lifecycle.on_close("valkey", lambda deadline: valkey.close())
    sent_forms = ValkeyForms.of(settings)
    lifecycle.on_close("sent forms", lambda deadline: sent_forms.close())
    tenancy = build_tenancy(settings, database=database, valkey=valkey, publisher=publisher, metrics=metrics)
    lifecycle.on_close("keys", lambda deadline: tenancy.keys.close())

    def waiting_for() -> list[str]:
        reasons = ["stopping"] if lifecycle.stopping.is_set() else []
        return [*reasons, *([] if all(view.ready for view in views) else ["views"]), *gateway.waiting_for]

    metrics.watch_pool(settings.database_pool_size, database.pool_in_use)
    kafka_offsets = KafkaOffsets(
        build_admin(settings, f"{client_id}-lag"),
        lambda group: build_consumer(settings, f"{client_id}-lag", group=group),
    )
    lifecycle.on_close("lag", lambda deadline: kafka_offsets.close())
    group_lag = GroupLag(offsets=kafka_offsets, groups=watched_groups(cards, settings.fleets), metrics=metrics)
    look = Periodic("group lag", INTERVAL_S, group_lag.look, lifecycle.fail)

    health = Health(
        dependencies={
            "kafka": Dependency(partial(_ping_kafka, producer), vital=True, without="no request can be taken"),
            "postgres": Dependency(database.ping, vital=False, without="no new key is recognised, no history is shown"),
            "valkey": Dependency(valkey.ping, vital=False, without="no limit is checked, keys are asked of Postgres"),
        },
        waiting_for=waiting_for,
        workers=workers,
        cards=cards,
        metrics=metrics,
        weights_of=traffic.weights,
        group_lag=group_lag,
    )
    sessions = Sessions(settings.stream_max_sessions, metrics)
    services = Services(
        cards=cards,
        robots=robots,
        metrics=metrics,
        sessions=sessions,
        gateway=gateway,
        keys=tenancy.keys,
        workers=workers,
        traffic=traffic,
        history=PostgresHistory(database),
        health=health,
        publisher=publisher,
        reader=PostgresReader(database),
        embedder=KafkaQueryEmbedder(gateway),
        consents=consents,
        limits=tenancy.limits,
        customers=tenancy.customers,
        key_admin=tenancy.key_admin,
        tokens=tenancy.tokens,
        topics=list(declared_topics(settings)),
        federate_targets=partial(targets_of, settings),
        group_lag=group_lag,
        stops=stops,
        stops_known=lambda: stop_view.ready,
        log=console_log,
        letters=LetterDesk(console_settings(settings)),
        sent_forms=sent_forms,
        tracing=tracing,
    )
    way = _Way(gateway=gateway, views=[*views, stop_view], producer=producer)
    lifecycle.on_close("group lag", look.close)
    look.start()
    connecting = asyncio.create_task(_connect(settings, lifecycle, way))
    tenancy.upkeep.start()
    started = time.monotonic()
    metrics.uptime.set_function(lambda: time.monotonic() - started)
    try:
        config = uvicorn_config(settings, create_app(settings, services), metrics)
        await _serve(settings, lifecycle, ApiServer(config, sessions), abandon=gateway.abandon)
    finally:
        connecting.cancel()
        await tenancy.upkeep.close()


def reply_partition(settings: Settings) -> int:
    """The partition of the replies topic that this process reads."""
    if settings.api_reply_partition is not None:
        return settings.api_reply_partition
    return settings.role_instance % settings.kafka_reply_partitions


def uvicorn_config(settings: Settings, app: object, metrics: Metrics) -> uvicorn.Config:
    most = descriptors_for(settings.max_connections)
    if most < settings.max_connections:
        log.warning(
            "the system lets this process have %d connections, not MAX_CONNECTIONS=%d: raise its limit of open files",
            most,
            settings.max_connections,
            extra={"action": "limit_connections"},
        )
    room = Room(most, lambda reason: metrics.connections_closed.labels(reason).inc())
    return uvicorn.Config(
        app,  # type: ignore[arg-type] # FastAPI is an ASGI application
        host=settings.host,
        port=settings.port,
        loop="none",
        http=protocol_with(settings.client_timeout_s, room),
        ws=AbortingProtocol,
        ws_max_size=settings.stream_max_frame_bytes,
        # Pixels do not get smaller by it.
        ws_per_message_deflate=False,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=math.ceil(settings.shutdown_timeout_s * _DRAIN_SHARE) + _LAST_ANSWERS_S,
    )


class ApiServer(uvicorn.Server):
    """Signals are the lifecycle's: it stops intake first, and ends at once on the second one."""

    def __init__(self, config: uvicorn.Config, sessions: Sessions) -> None:
        super().__init__(config)
        self._sessions = sessions

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """No new connection, then WebSocket sessions get their answers; HTTP requests get theirs meanwhile."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        for connection in list(self.server_state.connections):
            if not isinstance(connection, AbortingProtocol):
                connection.shutdown()
        await self._sessions.drain(self.config.timeout_graceful_shutdown or 0)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


async def _serve(settings: Settings, lifecycle: Lifecycle, server: ApiServer, *, abandon: Callable[[], None]) -> None:
    """Serve until stopping; then no new connection, and waiting requests get their reply within the drain time.

    abandon: ends the wait of those that got none, so that they are answered too.
    """
    try:
        listener = socket.create_server(
            (settings.host, settings.port),
            family=socket.AF_INET6 if ":" in settings.host else socket.AF_INET,
            backlog=server.config.backlog,
        )
    except OSError as error:
        raise Fatal(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror}): set HOST and PORT"
        ) from error
    loop = asyncio.get_running_loop()

    def wake() -> None:
        server.should_exit = True
        loop.call_soon_threadsafe(loop.call_later, settings.shutdown_timeout_s * _DRAIN_SHARE, abandon)

    lifecycle.on_stop(wake)
    if lifecycle.stopping.is_set():
        listener.close()
        return
    host, port = listener.getsockname()[:2]
    log.info("serving on http://%s:%d", host, port, extra={"action": "serve"})
    await server.serve(sockets=[listener])


async def _connect(settings: Settings, lifecycle: Lifecycle, way: _Way) -> None:
    """Bring up the way through Kafka behind a server that already answers /livez and /health."""
    try:
        await _until_available(lifecycle, lambda: wait_for_kafka(settings, timeout_s=2.0))
        for view in way.views:
            view.start()
            lifecycle.on_close("view", view.close)
        # The first request shall find the leader of its partition known.
        await _until_available(lifecycle, lambda: _know_topic(way.producer, REQUESTS))
        loop = asyncio.get_running_loop()
        await _until_available(lifecycle, lambda: way.gateway.open(loop))
    except Exception as error:
        lifecycle.fail(error)


async def _until_available(lifecycle: Lifecycle, attempt: Callable[[], None]) -> None:
    while not lifecycle.stopping.is_set():
        try:
            await asyncio.to_thread(attempt)
            return
        except Unavailable as error:
            log.warning("waiting: %s", error, extra={"action": "connect"})
            await asyncio.sleep(0.5)


def _know_topic(producer: Producer, topic: str) -> None:
    try:
        found = producer.list_topics(topic, timeout=2.0).topics[topic]
    except KafkaException as error:
        raise Unavailable(f"Kafka does not answer: {error.args[0].str()}") from error
    if found.error is not None:
        raise Fatal(f"topic {topic} does not exist: run `vlastream topics apply`")


def _ping_kafka(producer: Producer) -> None:
    _know_topic(producer, REPLIES)


def _reply_consumer(settings: Settings, client_id: str, on_error: Callable[[KafkaError], None]) -> Consumer:
    return build_consumer(settings, client_id, group=None, on_error=on_error)
