"""What a letter becomes when it is sent again. Pure.

A record goes back to its own topic and to the very partition that it lay in, never to where its key would put it
now: completions and outcomes lie where their request lies, and a fleet is answered in the partition it wrote to.
From there it passes the same gates as any record, and what makes repeats harmless holds for it too: a request that
was read before is a retry, a completion of a decided request is dropped, an outcome that is not above a sink's mark
is a repeat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf.message import DecodeError

from runtime.dlq.letters import Letter
from schemas import headers as h
from schemas.messages import Outcome
from schemas.topics import OUTCOMES, RESULTS

#: Header of a record that was sent again: the place of its letter.
REPLAYED_FROM = "dlq.replayed_from"


@dataclass(frozen=True, slots=True)
class Again:
    """A record to publish."""

    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: h.RawHeaders


@dataclass(frozen=True, slots=True)
class Unfit:
    """Why a letter cannot be sent again."""

    why: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """What is known of the topics that letters go back to."""

    #: Partitions of each topic that exists.
    partitions: Mapping[str, int]
    #: End offset of each partition of vla.results.v1.
    results_ends: Mapping[int, int]


def again(letter: Letter, cluster: Cluster) -> Again | Unfit:
    """The original value, key and headers, for the original partition; or why that must not be."""
    if letter.cut_bytes:
        return Unfit(
            f"{letter.cut_bytes} bytes of its value were cut off when it died: what is left is another message. "
            "Its producer has to send it again"
        )
    if letter.source is None:
        return Unfit("its headers do not say which record died: it was not written by a stage of this pipeline")
    count = cluster.partitions.get(letter.topic, 0)
    if letter.source.partition >= count:
        where = f"{letter.topic} has {count} partitions" if count else f"{letter.topic} does not exist"
        return Unfit(f"it lay in {letter.source} and {where}: run `vlastream topics apply` with the settings of then")
    if letter.topic == OUTCOMES and (fault := _ahead_of_the_log(letter, cluster)):
        return Unfit(fault)
    return Again(
        topic=letter.topic,
        partition=letter.source.partition,
        key=letter.key,
        value=letter.value,
        headers=[*letter.original_headers, (REPLAYED_FROM, str(letter.place).encode("ascii"))],
    )


def _ahead_of_the_log(letter: Letter, cluster: Cluster) -> str:
    """Sinks drop outcomes that are not above the last one: one with a made-up number would swallow those to come."""
    try:
        outcome = Outcome.FromString(letter.value or b"")
    except DecodeError:
        return ""  # no sink reads it either: it dies again
    end = cluster.results_ends.get(letter.source.partition, 0) if letter.source is not None else 0
    if outcome.results_offset < end:
        return ""
    return (
        f"it says that completion {outcome.results_offset} made it, and {RESULTS} ends at {end}: "
        "the sinks would take the next outcomes for repeats"
    )
