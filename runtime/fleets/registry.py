"""Which fleets there are: those of the setting FLEETS, and those registered in the compacted topic vla.fleets.v1.

A role that has fleets' topics reads both once, at its start. What is registered later holds from its next start on:
so a fleet begins to produce only when every gate has been restarted (runtime/fleets/commands.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial

from confluent_kafka import KafkaException

from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_consumer
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from runtime.view import CompactedView
from schemas.messages import Fleet
from schemas.topics import FLEETS

_TIMEOUT_S = 30.0


def registered_fleets(settings: Settings) -> Mapping[str, Fleet]:
    """Name -> record of every registered fleet; none where the topic does not exist yet. Raises Unavailable."""
    found: dict[str, Fleet] = {}

    def take(key: bytes, value: bytes | None, at_ms: int) -> None:
        if value is None:
            found.pop(key.decode(), None)
        else:
            found[key.decode()] = Fleet.FromString(value)

    if not _topic_exists(settings):
        return {}
    view = CompactedView(partial(build_consumer, settings, "vlastream-fleets", group=None), FLEETS, take)
    view.start()
    try:
        if not view.wait_ready(_TIMEOUT_S):
            raise Unavailable(f"{FLEETS} could not be read to its end")
    finally:
        view.close(Deadline(5))
    return found


def with_registered_fleets(settings: Settings) -> Settings:
    """The same settings with every fleet in `fleets`. Raises Unavailable while Kafka is away."""
    names = dict.fromkeys((*settings.fleets, *sorted(registered_fleets(settings))))
    return settings.model_copy(update={"fleets": tuple(names)})


def _topic_exists(settings: Settings) -> bool:
    with closing(build_consumer(settings, "vlastream-fleets", group=None)) as consumer:
        try:
            found = consumer.list_topics(FLEETS, timeout=_TIMEOUT_S).topics[FLEETS]
        except KafkaException as error:
            raise Unavailable(f"Kafka does not answer: {error.args[0].str()}") from error
    if found.error is not None and found.error.name() == "TOPIC_AUTHORIZATION_FAILED":
        raise Fatal(f"this user may not read {FLEETS}: `vlastream topics apply --acls` grants it to roles")
    return found.error is None and bool(found.partitions)
