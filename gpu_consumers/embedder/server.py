"""Role `embedder`: vectors of the instructions and images that customers allow, and of what they search for."""

from __future__ import annotations

from functools import partial

from confluent_kafka import Consumer

from gpu_consumers.devices import best_device
from gpu_consumers.embedder.cache import Cache, NoCache, RedisCache
from gpu_consumers.embedder.models import SentenceModel, load_image_model
from gpu_consumers.embedder.stage import GROUP, EmbedStage
from runtime.consent import ConsentList
from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_consumer, build_producer, wait_for_kafka
from runtime.lifecycle import Lifecycle
from runtime.metrics import Metrics
from runtime.processor import OnCommit, Processor
from runtime.publisher import Publisher
from runtime.settings import Settings
from runtime.status_server import StatusServer
from runtime.view import CompactedView
from schemas.card_files import load_cards
from schemas.topics import CONSENT, QUERIES, REPLIES, accepted_topic

#: Batches that may wait behind the one that is computed.
_BATCHES_AHEAD = 4
_STUCK_S = 60.0
_VIEW_TIMEOUT_S = 30.0


def main(settings: Settings) -> int:
    """Run the role until it is told to stop; returns its exit status."""
    lifecycle = Lifecycle(settings.shutdown_timeout_s)
    with lifecycle.signals():
        try:
            serve(settings, lifecycle)
        except Exception as error:
            lifecycle.fail(error)
        return lifecycle.close()


def serve(settings: Settings, lifecycle: Lifecycle) -> None:
    if not settings.enable_embeddings:
        raise Fatal("ENABLE_EMBEDDINGS is false: do not start this role, or set it to true")
    metrics = Metrics()
    processors: list[Processor] = []
    status = StatusServer(
        host=settings.host,
        port=settings.metrics_port,
        metrics=metrics if settings.enable_prometheus else None,
        waiting=lambda: _waiting(processors),
        alive=lambda: all(one.since_poll_s < _STUCK_S for one in processors),
    )
    lifecycle.on_close("status server", status.close)
    client_id = f"embedder-{settings.role_instance}"
    device = best_device(settings)
    text_model = SentenceModel(settings.instruction_embedding_model, device)
    image_model = load_image_model(settings.image_embedding_model, device)
    wait_for_kafka(settings)
    publisher = Publisher(build_producer(settings, client_id), metrics, lifecycle.fail)
    lifecycle.on_close("publisher", lambda deadline: publisher.close(deadline.remaining_s))
    consents = ConsentList(settings.default_consent_tier, settings.anonymization_level)
    view = CompactedView(partial(build_consumer, settings, f"{client_id}-view", group=None), CONSENT, consents.update)
    view.start()
    lifecycle.on_close("view", view.close)
    if not view.wait_ready(_VIEW_TIMEOUT_S):
        raise Unavailable(f"{CONSENT} could not be read to its end: did `vlastream topics apply` run?")
    publisher.warm_up(REPLIES, 0)
    ttl_s = settings.embedding_cache_ttl
    cache: Cache = RedisCache.at(settings.redis_url.get_secret_value(), ttl_s) if ttl_s else NoCache()
    stage = EmbedStage(
        text_model=text_model,
        image_model=image_model,
        cache=cache,
        consents=consents,
        publisher=publisher,
        metrics=metrics,
        batch_size=settings.embedding_batch_size,
        on_failure=lambda error: lifecycle.fail(error if isinstance(error, Exception) else Fatal(repr(error))),
    )
    stage.start()
    lifecycle.on_close("embedding", stage.close)

    def consumer(on_commit: OnCommit) -> Consumer:
        return build_consumer(settings, client_id, group=GROUP, on_commit=on_commit)

    cards = load_cards(settings.cards_dir)
    processor = Processor(
        build=consumer,
        topics=[*(accepted_topic(card.deployment) for card in cards.models), QUERIES],
        handler=stage,
        metrics=metrics,
        max_in_flight=_BATCHES_AHEAD * settings.embedding_batch_size,
    )
    processors.append(processor)
    lifecycle.on_close("consumer", processor.close)
    processor.run(lifecycle.stopping)


def _waiting(processors: list[Processor]) -> list[str]:
    if not processors:
        return ["the models"]
    return [] if processors[0].joined else ["its first assignment from the consumer group"]
