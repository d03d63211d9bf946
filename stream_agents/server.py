"""Role `gate`: builds everything, runs until told to stop, ends in order."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from typing import Any

import uvloop

from runtime.consent import ConsentList
from runtime.control import StopList
from runtime.customers import CustomerList
from runtime.embodiments import RobotTypes
from runtime.errors import Fatal
from runtime.fleets.registry import with_registered_fleets
from runtime.kafka import build_consumer, build_producer, wait_for_kafka
from runtime.lifecycle import Deadline, Lifecycle, exit_now
from runtime.limit_counter import LimitCounter
from runtime.memory import collect_less_often
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.read_back import SINGLE_READS
from runtime.settings import Settings
from runtime.status_server import StatusServer
from runtime.tracing import build_tracing
from runtime.traffic import TrafficTable
from runtime.view import CompactedView
from runtime.workers import LiveWorkers
from schemas.card_files import load_cards
from schemas.messages import Control
from schemas.topics import CONSENT, CONTROL, CUSTOMERS, EMBODIMENTS, REPLIES, TRAFFIC, WORKERS
from stream_agents.action_agent import ActionAgent
from stream_agents.app import Gate, build_app
from stream_agents.delivery import DeadLetters, Delivery
from stream_agents.fleet_limits import FleetLimits
from stream_agents.log_reader import LogReader
from stream_agents.replies import Origins
from stream_agents.request_agent import RequestAgent, circumstances_of
from stream_agents.request_table import RequestTable
from stream_agents.stall import STALLED_S, StallGuard, TailGuard, recovery_of

log = logging.getLogger(__name__)


def main(settings: Settings) -> int:
    """Run one gate process; returns its exit status."""
    lifecycle = Lifecycle(settings.shutdown_timeout_s)
    with lifecycle.signals():
        try:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(_run(settings, lifecycle))
        except Exception as error:
            lifecycle.fail(error)
        return lifecycle.close()


async def _run(settings: Settings, lifecycle: Lifecycle) -> None:
    metrics = Metrics()
    tracing = build_tracing(settings, "gate")
    lifecycle.on_close("traces", tracing.close)
    client_id = f"gate-{settings.role_instance}"
    cards = load_cards(settings.cards_dir)
    workers, stops = LiveWorkers(settings.worker_timeout_s), StopList()
    customers = CustomerList()
    consents = ConsentList(settings.default_consent_tier, settings.anonymization_level)
    traffic = TrafficTable()
    robots = RobotTypes(cards)
    build_view_consumer = partial(build_consumer, settings, f"{client_id}-view", group=None)
    views = [
        CompactedView(build_view_consumer, WORKERS, workers.update),
        CompactedView(build_view_consumer, CONTROL, stops.update),
        CompactedView(build_view_consumer, CONSENT, consents.update),
        CompactedView(build_view_consumer, TRAFFIC, traffic.update),
        CompactedView(build_view_consumer, CUSTOMERS, customers.update),
        CompactedView(build_view_consumer, EMBODIMENTS, robots.update),
    ]
    await asyncio.to_thread(wait_for_kafka, settings)
    fleets = (await asyncio.to_thread(with_registered_fleets, settings)).fleets
    origins = Origins(fleets, settings.kafka_reply_partitions)
    data_dir = settings.data_dir / client_id
    data_dir.mkdir(parents=True, exist_ok=True)
    log_reader = LogReader(partial(build_consumer, settings, f"{client_id}-log", group=None, **SINGLE_READS))
    lifecycle.on_close("log reader", log_reader.close)
    gate = Gate(
        build_app(settings, data_dir),
        request_topics=origins.topics,
        partitions=settings.kafka_partitions,
        log_reader=log_reader,
        metrics=metrics,
    )
    warm = asyncio.Event()
    status = StatusServer(
        host=settings.host,
        port=settings.metrics_port,
        metrics=metrics if settings.enable_prometheus else None,
        waiting=lambda: _waiting(views, gate, warm),
    )
    lifecycle.on_close("status", status.close)

    publisher = Publisher(build_producer(settings, client_id), metrics, lifecycle.fail)
    lifecycle.on_close("publisher", lambda deadline: publisher.close(deadline.remaining_s))
    for view in views:
        view.start()
        lifecycle.on_close("view", view.close)
    # Nothing is judged before every stop, consent, worker, share and robot type is known.
    await asyncio.to_thread(_wait_for_views, views, settings.shutdown_timeout_s * 3)
    await asyncio.to_thread(publisher.warm_up, REPLIES, 0)
    warm.set()

    def stop_of(customer_id: str, robot_id: str, model: str) -> Control | None:
        return stops.stop_of(customer_id=customer_id, robot_id=robot_id, model=model)

    counter = LimitCounter.of(settings, metrics) if settings.enable_rate_limits else None
    limits = FleetLimits(customers, counter, origins.is_fleet, metrics)
    delivery = Delivery(publisher, metrics)
    dead_letters = DeadLetters(delivery, metrics, group="vla-gate")
    table = RequestTable(gate.store, dedup_window_ms=round(settings.dedup_window_s * 1000))
    requests = RequestAgent(
        table=table,
        origins=origins,
        delivery=delivery,
        dead_letters=dead_letters,
        log_reader=log_reader,
        circumstances=circumstances_of(
            robots=robots,
            has_live_worker=lambda deployment: bool(workers.live(deployment)),
            stop_of=stop_of,
            max_ttl_ms=settings.max_ttl_ms,
            weights_of=traffic.weights,
        ),
        default_ttl_ms=settings.default_ttl_ms,
        max_ttl_ms=settings.max_ttl_ms,
        tier_of=lambda customer_id: consents.tier(customer_id, round(time.time() * 1000)),
        limits=limits,
        metrics=metrics,
        tracing=tracing,
    )
    actions = ActionAgent(
        table=table,
        robots=robots,
        delivery=delivery,
        dead_letters=dead_letters,
        stop_of=stop_of,
        min_safety_score=settings.min_safety_score,
        metrics=metrics,
        tracing=tracing,
    )
    gate.install(on_request=requests.handle, on_completion=actions.handle, restore=table.restore)
    try:
        await _run_until_stopped(gate, lifecycle, metrics)
    finally:
        await limits.close()


async def _run_until_stopped(gate: Gate, lifecycle: Lifecycle, metrics: Metrics) -> None:
    """Run the Faust app until a signal, or until it crashes by itself."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    lifecycle.on_stop(wake)
    if lifecycle.stopping.is_set():
        return
    started = time.monotonic()
    await gate.start()
    collect_less_often()
    app = gate.app
    metrics.uptime.set_function(lambda: time.monotonic() - started)
    stalls, tails = StallGuard(), TailGuard[Any]()
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), timeout=0.5)
        except TimeoutError:
            if app.should_stop or app.crashed:
                raise Fatal(f"Faust stopped: {app.crash_reason!r}") from None
            await gate.seek_back(tails.dropped(gate.unread()))
            if stalls.stalled(*recovery_of(app)):
                exit_now(f"the table's recovery has read nothing for {STALLED_S:.0f} s: a new process begins it again")
    try:
        await asyncio.wait_for(app.stop(), timeout=_FAUST_STOP_TIMEOUT_S)
    except TimeoutError:
        # An agent still waits for an acknowledgement: leave without committing, its message is read again.
        exit_now("Faust did not stop in time")


#: Time that the agents get to finish what they have begun, and Faust to commit and leave its group.
_FAUST_STOP_TIMEOUT_S = 10.0


def _wait_for_views(views: list[CompactedView], timeout_s: float) -> None:
    deadline = Deadline(timeout_s)
    for view in views:
        if not view.wait_ready(deadline.remaining_s):
            raise Fatal(
                "a compacted topic could not be read to its end: is Kafka up, did `vlastream topics apply` run?"
            )


def _waiting(views: list[CompactedView], gate: Gate, warm: asyncio.Event) -> list[str]:
    reasons = ["views"] if not all(view.ready for view in views) else []
    if not warm.is_set():
        reasons.append("producer")
    if not gate.recovered:
        reasons.append("partitions")
    return reasons
