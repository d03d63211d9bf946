"""`vlastream dlq ...`: each command reads the letters and says what it found or did."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice

from runtime.dlq.letters import Letter, Selection, parse_moment, parse_place
from runtime.dlq.log import CLIENT_ID, LetterLog
from runtime.dlq.pages import HEADING, line, page
from runtime.dlq.purge import plan_purge
from runtime.dlq.replay import Unfit, again
from runtime.dlq.sending import send_again
from runtime.errors import Fatal
from runtime.kafka import build_producer
from runtime.metrics import Metrics
from runtime.publisher import Publisher
from runtime.settings import Settings
from schemas.headers import Source
from schemas.topics import OUTCOMES

Say = Callable[[str], None]
_FLUSH_S = 30.0


def selection(
    *,
    topics: tuple[str, ...] = (),
    reasons: tuple[str, ...] = (),
    since: str | None = None,
    until: str | None = None,
    places: tuple[str, ...] = (),
) -> Selection:
    """From what was typed. Raises Fatal for a time or a place that is none."""
    now_s = time.time()
    return Selection(
        topics=topics,
        reasons=reasons,
        since_ms=None if since is None else parse_moment(since, now_s),
        until_ms=None if until is None else parse_moment(until, now_s),
        places=tuple(parse_place(place) for place in places),
    )


def list_letters(settings: Settings, *, limit: int, say: Say, **typed: object) -> None:
    """One line for each of the first `limit` letters, and how many there are of each reason."""
    chosen = selection(**typed)  # type: ignore[arg-type] # click has parsed them
    reasons: Counter[tuple[str, str]] = Counter()
    with closing(LetterLog(settings)) as log:
        for letter in _matching(log, chosen):
            if not reasons:
                say(HEADING)
            if reasons.total() < limit:
                say(line(letter))
            reasons[letter.topic, letter.reason or "-"] += 1
    if reasons.total() > limit:
        say(f"... {reasons.total() - limit} more: narrow the filter, or raise --limit")
    for (topic, reason), number in sorted(reasons.items()):
        say(f"{number} of {topic}: {reason}")
    if not reasons:
        say("no dead letters" + (" that match" if chosen.filters else ""))


def show_letter(settings: Settings, place: str, *, say: Say) -> None:
    """Everything about one letter. Raises Fatal where there is none."""
    with closing(LetterLog(settings)) as log:
        for letter in _matching(log, selection(places=(place,))):
            for text in page(letter):
                say(text)
            return
    raise Fatal(f"there is no dead letter at {place}, nor one of that record: see `vlastream dlq list`")


def replay_letters(
    settings: Settings, *, limit: int | None, dry_run: bool, everything: bool, say: Say, **typed: object
) -> int:
    """Send the records of letters again; returns how many could not be, places without a letter among them.

    Raises Fatal without a filter, unless it is to be everything; Unavailable where Kafka went away on the way.
    """
    chosen = selection(**typed)  # type: ignore[arg-type] # click has parsed them
    _need_a_filter(chosen, everything)
    with closing(LetterLog(settings)) as log:
        missing = set(chosen.places)
        letters = islice(_ticked_off(_matching(log, chosen), missing), limit)
        if dry_run:
            unfit = _rehearse(log, letters, say)
        else:
            publisher = Publisher(build_producer(settings, CLIENT_ID), Metrics())
            try:
                unfit = asyncio.run(_replay(log, letters, publisher, say))
            finally:
                publisher.close(_FLUSH_S)
    if limit is None:
        for place in sorted(map(str, missing)):
            unfit += 1
            say(f"there is no dead letter at {place}, nor one of that record: see `vlastream dlq list`")
    return unfit


def purge_letters(
    settings: Settings, *, everything: bool, confirm: Callable[[str], bool], say: Say, **typed: object
) -> None:
    """Delete letters, after `confirm` has agreed to the sentence that says how many.

    Kafka deletes from the front. A partition in which other letters stand in front of the last one that is meant is
    left alone, unless it is to be everything. Raises Fatal where nothing may go.
    """
    chosen = selection(**typed)  # type: ignore[arg-type] # click has parsed them
    _need_a_filter(chosen, everything)
    with closing(LetterLog(settings)) as log:
        plan = plan_purge(log.read(chosen), chosen)
        if not plan.parts:
            say("no dead letters match: nothing to purge")
            return
        for (topic, partition), part in sorted(plan.parts.items()):
            also = f" and {part.others} others in front of them" if part.others else ""
            say(f"{topic}/{partition} before offset {part.before}: {part.matching} letters that match{also}")
        going = plan if everything else plan.only_matching()
        if len(going.parts) < len(plan.parts):
            say("Kafka deletes from the front only: where others stand in front, nothing goes without --all")
        if not going.parts:
            raise Fatal("nothing was purged: narrow the filter to the oldest letters, or say --all")
        if confirm(f"delete {going.matching + going.others} dead letters for good?"):
            log.delete({place: part.before for place, part in going.parts.items()})
            say(f"{going.matching + going.others} purged")
        else:
            say("nothing was purged")


def _matching(log: LetterLog, chosen: Selection) -> Iterator[Letter]:
    return (letter for letter in log.read(chosen) if chosen.matches(letter))


def _ticked_off(letters: Iterator[Letter], missing: set[Source]) -> Iterator[Letter]:
    """The letters; each takes the places that mean it out of `missing`."""
    for letter in letters:
        missing -= {letter.place, letter.source}
        yield letter


def _need_a_filter(chosen: Selection, everything: bool) -> None:
    if not chosen.filters and not everything:
        raise Fatal("say which letters: by --topic, --reason, --since, --until or their places, or --all")


def _rehearse(log: LetterLog, letters: Iterator[Letter], say: Say) -> int:
    fit = unfit = 0
    cluster = log.cluster()
    for letter in letters:
        record = again(letter, cluster)
        if isinstance(record, Unfit):
            unfit += 1
            say(f"{letter.place} cannot be sent again: {record.why}")
        else:
            fit += 1
            say(f"{letter.place} would be sent again to {record.topic}/{record.partition}")
    say(f"{fit} would be sent again, {unfit} cannot be")
    return unfit


async def _replay(log: LetterLog, letters: Iterator[Letter], publisher: Publisher, say: Say) -> int:
    """One after the other, each acknowledged before the next: what is told is done, in the order of the letters."""
    sent: Counter[str] = Counter()
    unfit = 0
    cluster = log.cluster()
    try:
        for letter in letters:
            done = await send_again(letter, cluster, publisher)
            if isinstance(done, Unfit):
                unfit += 1
                say(f"{letter.place} {done.why}")
            else:
                sent[done.topic] += 1
                say(f"{letter.place} sent again as {done}")
    finally:
        by_topic = "".join(f", {number} to {topic}" for topic, number in sorted(sent.items()))
        say(f"{sent.total()} sent again{by_topic}; {unfit} refused")
        if sent[OUTCOMES]:
            say("note: a sink that has written a later outcome of the same partition passes over an earlier one")
    return unfit
