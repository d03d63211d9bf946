"""Dead letters for the console's operators: read, and sent again, by the console's own Kafka user.

Each question opens its own clients and closes them: operators come seldom, and after a fault nothing has to heal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ingest_api.console.log_frames import MISSING_USER
from runtime.dlq.letters import Letter, Selection
from runtime.dlq.log import LetterLog
from runtime.dlq.replay import Cluster, Unfit
from runtime.dlq.sending import send_again
from runtime.errors import Fatal, Unavailable
from runtime.kafka import build_producer
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from schemas.headers import Source
from schemas.topics import DEAD_LETTER_SUFFIX

T = TypeVar("T")

_CLIENT_ID = "vlastream-console-letters"
#: Letters of each partition that a list is made from, the newest: a topic full of frames is no page.
NEWEST = 50
_FLUSH_S = 10.0
_NOTHING_SEEN = "this user of Kafka sees no dead letter topic: `vlastream topics apply --acls` makes and shows them"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A letter without what it holds, for lists."""

    place: Source
    topic: str
    reason: str
    stage: str
    request_id: str
    died_at_ms: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Pile:
    """topics: in which records may die. entries: newest first."""

    topics: list[str]
    entries: list[Entry]


class LetterPort(Protocol):
    """Methods raise Unavailable while Kafka is away or may not be used; the message says why."""

    async def pile(self, topic: str) -> Pile:
        """The newest letters of every partition; topic: of this one's records alone, "" of all."""
        ...

    async def at(self, places: Sequence[Source]) -> tuple[list[Letter], Cluster]:
        """The letters that still lie there, in the order of the places, and what sending them again has to know."""
        ...

    async def send(self, letters: Sequence[Letter], cluster: Cluster) -> list[Source | Unfit]:
        """Send each again, one after the other: where it lies now, or why it does not."""
        ...


class LetterDesk:
    """LetterPort on a real broker. One at a time."""

    def __init__(self, settings: Settings | None) -> None:
        """settings: those of the user who may; None where there is none."""
        self._settings = settings
        self._turn = asyncio.Lock()

    async def pile(self, topic: str) -> Pile:
        chosen = Selection(topics=(topic,) if topic else ())

        def look(log: LetterLog) -> Pile:
            topics = [name.removesuffix(DEAD_LETTER_SUFFIX) for name in log.topics()]
            if not topics:
                raise Unavailable(_NOTHING_SEEN)
            if topic and topic not in topics:
                return Pile(topics, [])
            entries = [entry_of(letter) for letter in log.read(chosen, newest=NEWEST)]
            return Pile(topics, sorted(entries, key=lambda entry: entry.died_at_ms, reverse=True))

        return await self._with_log(look)

    async def at(self, places: Sequence[Source]) -> tuple[list[Letter], Cluster]:
        def look(log: LetterLog) -> tuple[list[Letter], Cluster]:
            found: Iterator[Letter | None] = (log.at(place) for place in places)
            return [letter for letter in found if letter is not None], log.cluster()

        return await self._with_log(look)

    async def send(self, letters: Sequence[Letter], cluster: Cluster) -> list[Source | Unfit]:
        settings = self._known()
        async with self._turn:
            publisher = Publisher(build_producer(settings, _CLIENT_ID), Metrics())
            try:
                return [await send_again(letter, cluster, publisher) for letter in letters]
            finally:
                await asyncio.to_thread(publisher.close, _FLUSH_S)

    async def _with_log(self, look: Callable[[LetterLog], T]) -> T:
        settings = self._known()

        def work() -> T:
            with closing(LetterLog(settings)) as log:
                return look(log)

        async with self._turn:
            try:
                return await asyncio.to_thread(work)
            except Fatal as error:
                raise Unavailable(str(error)) from error

    def _known(self) -> Settings:
        if self._settings is None:
            raise Unavailable(MISSING_USER)
        return self._settings


def entry_of(letter: Letter) -> Entry:
    return Entry(
        place=letter.place,
        topic=letter.topic,
        reason=letter.reason,
        stage=letter.stage,
        request_id=letter.request_id,
        died_at_ms=letter.died_at_ms,
        size_bytes=len(letter.value or b"") + letter.cut_bytes,
    )
