"""Role `gpu`: one policy on one device serves one deployment."""

from __future__ import annotations

from confluent_kafka import Consumer

from gpu_consumers.conversions import conversions_of
from gpu_consumers.devices import choose_device
from gpu_consumers.pipeline import Worker, group_of
from gpu_consumers.policies.contract import RemotePolicy
from gpu_consumers.policies.registry import load_options, load_policy
from runtime.errors import Fatal
from runtime.kafka import build_consumer, build_producer, partition_count, wait_for_kafka
from runtime.lifecycle import Lifecycle
from runtime.metrics import Metrics
from runtime.processor import OnCommit
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.status_server import StatusServer
from runtime.tracing import build_tracing
from schemas.card_files import load_cards
from schemas.cards import CardSet, ModelCard
from schemas.topics import RESULTS, accepted_topic


def main(settings: Settings) -> int:
    """Serve one deployment until told to stop; returns the exit status of the process."""
    lifecycle = Lifecycle(settings.shutdown_timeout_s)
    with lifecycle.signals():
        try:
            serve(settings, lifecycle)
        except Exception as error:
            lifecycle.fail(error)
        return lifecycle.close()


def serve(settings: Settings, lifecycle: Lifecycle) -> None:
    cards = load_cards(settings.cards_dir)
    card = choose_deployment(cards, settings.deployment)
    conversions = conversions_of(card, cards)
    metrics = Metrics()
    tracing = build_tracing(settings, "gpu")
    lifecycle.on_close("traces", tracing.close)
    workers: list[Worker] = []
    status = StatusServer(
        host=settings.host,
        port=settings.metrics_port,
        metrics=metrics if settings.enable_prometheus else None,
        waiting=lambda: workers[0].waiting() if workers else ["the model"],
        alive=lambda: all(worker.alive() for worker in workers),
    )
    lifecycle.on_close("status server", status.close)
    # 0 while weights are loaded: a process that never gets beyond it is seen.
    metrics.model_loaded.labels(card.deployment, "").set(0)
    wait_for_kafka(settings)
    client_id = f"gpu-{settings.role_instance}"
    publisher = Publisher(build_producer(settings, client_id), metrics, lifecycle.fail)
    lifecycle.on_close("publisher", lambda deadline: publisher.close(deadline.remaining_s))

    def consumer(on_commit: OnCommit) -> Consumer:
        built = build_consumer(settings, client_id, group=group_of(card), on_commit=on_commit)
        for topic in (accepted_topic(card.deployment), RESULTS):
            partition_count(built, topic)
        return built

    policy = load_policy(card, choose_device(settings, card), load_options(settings))
    if isinstance(policy, RemotePolicy):
        lifecycle.on_close("the policy's connections", lambda deadline: policy.close())
    workers.append(
        Worker(
            settings=settings,
            policy=policy,
            conversions=conversions,
            publisher=publisher,
            build_consumer=consumer,
            metrics=metrics,
            lifecycle=lifecycle,
            tracing=tracing,
        )
    )
    workers[0].run()


def choose_deployment(cards: CardSet, name: str) -> ModelCard:
    """The card of a deployment; without a name the first one of the default model. Raises Fatal."""
    if name:
        card = cards.deployment(name)
    else:
        served = cards.deployments(cards.default_model or "")
        card = served[0] if served else None
    if card is None:
        known = ", ".join(card.deployment for card in cards.models) or "none"
        raise Fatal(f"no deployment {name or 'of a default model'}: set DEPLOYMENT to one of: {known}")
    return card
