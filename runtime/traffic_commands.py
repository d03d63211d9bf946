"""`vlastream models traffic`: shows and changes how a model's robots are dealt to its deployments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial

from confluent_kafka import TopicPartition

from runtime.control_commands import login_name
from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_consumer, build_producer, end_positions, wait_for_kafka
from runtime.lifecycle import Deadline
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.traffic import TrafficTable, publish_traffic, traffic_record
from runtime.view import CompactedView, OnRecord
from runtime.workers import LiveWorkers
from schemas.card_files import load_cards
from schemas.cards import CardSet
from schemas.messages import Traffic
from schemas.topics import TRAFFIC, WORKERS, accepted_topic, worker_group

_CLIENT_ID = "vlastream-traffic"
_TIMEOUT_S = 15.0
#: Nothing has come to a deployment for so long: no gate sends it anything by the old weights any more.
_QUIET_S = 2.0


def parse_weights(words: Sequence[str]) -> dict[str, float]:
    """`DEPLOYMENT=WEIGHT` words. Raises Fatal for anything else."""
    weights: dict[str, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        try:
            weights[name] = float(number)
        except ValueError as error:
            raise Fatal(f"{word!r} is no share: write DEPLOYMENT=WEIGHT, such as pi0-b=10") from error
    return weights


def set_traffic(
    settings: Settings,
    model: str,
    words: Sequence[str],
    *,
    reason: str,
    by: str | None,
    force: bool,
    wait_s: float,
    say: Callable[[str], None],
) -> int:
    """Deal a model's robots anew, and wait until deployments that get none any more have answered what they had.

    wait_s: 0 does not wait. Returns the exit status: 1 where one had not drained in time.
    Raises Reject or Fatal for shares that cannot be, and where a deployment has no live worker unless `force`;
    Unavailable while Kafka is away.
    """
    cards = load_cards(settings.cards_dir)
    record = traffic_record(model, parse_weights(words), cards, who=by if by is not None else login_name(), why=reason)
    weights = {share.deployment: share.weight for share in record.shares}
    wait_for_kafka(settings, timeout_s=_TIMEOUT_S)
    if not force:
        workers = LiveWorkers(settings.worker_timeout_s)
        _read(settings, WORKERS, workers.update)
        idle = [name for name, weight in weights.items() if weight > 0 and not workers.live(name)]
        if idle:
            raise Fatal(f"no live worker: {', '.join(idle)}. Start `DEPLOYMENT={idle[0]} vlastream gpu`, or --force")
    publisher = Publisher(build_producer(settings, _CLIENT_ID), Metrics())
    try:
        where = asyncio.run(publish_traffic(publisher, record))
    finally:
        publisher.close(_TIMEOUT_S)
    say(f"{_shares(model, weights, cards)} ({where.topic}/{where.partition}/{where.offset})")
    leaving = [card.deployment for card in cards.deployments(model) if weights.get(card.deployment, 0) <= 0]
    drained = [_drain(settings, name, wait_s, say) for name in leaving if wait_s > 0]
    return 0 if all(drained) else 1


def show_traffic(settings: Settings, model: str, *, history: bool, say: Callable[[str], None]) -> None:
    """How a model's robots are dealt now; with `history` every change that the topic still has, oldest first.

    Raises Fatal for a model that no card has, Unavailable while Kafka is away.
    """
    cards = load_cards(settings.cards_dir)
    if not cards.deployments(model):
        known = ", ".join(sorted({card.model for card in cards.models})) or "none"
        raise Fatal(f"no model is named {model!r}: there are: {known}")
    table, changes = TrafficTable(), list[tuple[int, Traffic]]()

    def take(key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        table.update(key, value, appended_at_ms)
        if key == model.encode() and value is not None:
            changes.append((appended_at_ms, Traffic.FromString(value)))

    wait_for_kafka(settings, timeout_s=_TIMEOUT_S)
    _read(settings, TRAFFIC, take)
    if not history:
        say(_shares(model, table.weights(model), cards))
    for at_ms, change in changes if history else changes[-1:]:
        when = datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        shares = " ".join(f"{share.deployment}={share.weight:g}" for share in change.shares)
        # The topic's writers do not get to move a terminal's cursor.
        line = f"{when}  {shares}  by {change.who or 'nobody named'}: {change.why}"
        say("".join(c if c.isprintable() else "?" for c in line))


def _shares(model: str, weights: Mapping[str, float] | None, cards: CardSet) -> str:
    served = cards.deployments(model)
    found = {card.deployment: card.traffic if weights is None else weights.get(card.deployment, 0) for card in served}
    total = sum(found.values()) or 1
    origin = " (as the cards say)" if weights is None else ""
    return f"{model}: " + ", ".join(f"{name} {100 * share / total:.0f} %" for name, share in found.items()) + origin


def _drain(settings: Settings, deployment: str, wait_s: float, say: Callable[[str], None]) -> bool:
    """Whether its workers have committed everything that was accepted for a deployment, within `wait_s`."""
    topic = accepted_topic(deployment)
    consumer = build_consumer(settings, _CLIENT_ID, group=worker_group(deployment))
    deadline, quiet_since, ends = Deadline(wait_s), time.monotonic(), end_positions(consumer, topic)
    try:
        while True:
            found = end_positions(consumer, topic)
            if found != ends:
                ends, quiet_since = found, time.monotonic()
            committed = consumer.committed([TopicPartition(topic, partition) for partition in ends], timeout=5.0)
            behind = sum(max(ends[at.partition] - max(at.offset, 0), 0) for at in committed)
            if not behind and time.monotonic() - quiet_since >= _QUIET_S:
                say(f"{deployment} has drained: its workers may be stopped")
                return True
            if deadline.passed:
                say(f"{deployment} still has {behind} accepted requests: leave its workers running")
                return False
            time.sleep(0.2)
    finally:
        consumer.close()


def _read(settings: Settings, topic: str, take: OnRecord) -> None:
    """A compacted topic, once, to its end."""
    view = CompactedView(partial(build_consumer, settings, _CLIENT_ID, group=None), topic, take)
    view.start()
    try:
        if not view.wait_ready(_TIMEOUT_S):
            raise Unavailable(f"{topic} could not be read to its end: did `vlastream topics apply` run?")
    finally:
        view.close(Deadline(_TIMEOUT_S))
