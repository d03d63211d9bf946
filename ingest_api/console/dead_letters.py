"""/console/dead-letters: what no stage could read, why, and sending it again. For operators, by `runtime.dlq`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

from fastapi import Request, Response

from ingest_api.console.frame import Frame
from ingest_api.console.letter_desk import NEWEST, Entry, LetterPort, Pile
from ingest_api.console.sealed import opened, sealed
from ingest_api.console.session import ROOT, Viewer
from ingest_api.keys import origin_of
from ingest_api.problems import Problem
from runtime.audit import event, publish_event
from runtime.dlq.letters import Letter
from runtime.dlq.pages import header_lines, printable, value_page
from runtime.dlq.replay import Unfit, again
from runtime.errors import Unavailable, VlastreamError
from runtime.publisher import PublisherPort
from schemas.codes import Code
from schemas.headers import Source
from schemas.scopes import Scope
from schemas.topics import DEAD_LETTER_SUFFIX

log = logging.getLogger(__name__)

LETTERS = f"{ROOT}/dead-letters"
REPLAY = f"{LETTERS}/replay"
REPLAYED = f"{LETTERS}/replayed"
_MOST_ROWS = 200
#: Letters of one replay: their places have to fit into its form.
MOST_AT_ONCE = 50


class DeadLetterPages:
    """publisher: of the audit log, which hears of a replay before it begins."""

    def __init__(self, frame: Frame, *, letters: LetterPort, publisher: PublisherPort) -> None:
        self._frame = frame
        self._letters = letters
        self._publisher = publisher
        frame.shows(LETTERS, self.list, Scope.ADMIN)
        frame.shows(REPLAY, self.ask, Scope.ADMIN)
        frame.acts(REPLAY, self.replay, Scope.ADMIN, look_at=LETTERS)
        frame.shows(REPLAYED, self.replayed, Scope.ADMIN)
        frame.shows(f"{LETTERS}/{{topic}}/{{partition}}/{{offset}}", self.one, Scope.ADMIN)

    async def list(self, request: Request, viewer: Viewer) -> Response:
        asked = _asked(request)
        missing, pile = "", Pile([], [])
        try:
            pile = await self._letters.pile(asked["topic"])
        except Unavailable as error:
            missing = str(error)
        meant = _meant(pile.entries, asked["reason"])
        return self._frame.respond(
            request,
            viewer,
            "dead_letters.html",
            asked=asked,
            kept=urlencode({name: text for name, text in asked.items() if text}),
            topics=pile.topics,
            reasons=sorted(
                {entry.reason for entry in pile.entries if entry.reason} | set(filter(None, [asked["reason"]]))
            ),
            entries=meant[:_MOST_ROWS],
            count=len(meant),
            newest=NEWEST,
            most=MOST_AT_ONCE,
            missing=missing,
            at=_moment,
        )

    async def one(self, request: Request, viewer: Viewer) -> Response:
        place = _place("/".join(str(request.path_params[name]) for name in ("topic", "partition", "offset")))
        (letters, cluster) = await self._letters.at([place]) if place is not None else ([], None)
        if not letters or cluster is None:
            raise Problem(Code.NOT_FOUND, "no dead letter lies here, or no more: it was purged, or its time has passed")
        letter = letters[0]
        kind, *lines = value_page(letter)
        fit = again(letter, cluster)
        return self._frame.respond(
            request,
            viewer,
            "dead_letter.html",
            letter=letter,
            key=printable(letter.key.decode("ascii", "backslashreplace")) if letter.key is not None else "",
            headers=header_lines(letter),
            kind=kind,
            lines=lines,
            unfit=fit.why if isinstance(fit, Unfit) else "",
            at=_moment,
        )

    async def ask(self, request: Request, viewer: Viewer) -> Response:
        """Which letters would be sent again: one by `place`, or the oldest of those that a filter means."""
        asked, text = _asked(request), request.query_params.get("place", "")
        if text:
            places = list(filter(None, [_place(text)]))
        else:
            meant = _meant((await self._letters.pile(asked["topic"])).entries, asked["reason"])
            places = [entry.place for entry in reversed(meant)]
        rest = max(len(places) - MOST_AT_ONCE, 0)
        letters, cluster = await self._letters.at(places[:MOST_AT_ONCE])
        if not letters:
            raise Problem(Code.NOT_FOUND, "no dead letter is meant by this, or none lies there any more")
        fits = [again(letter, cluster) for letter in letters]
        going = [letter for letter, fit in zip(letters, fits, strict=True) if not isinstance(fit, Unfit)]
        return self._frame.respond(
            request,
            viewer,
            "dead_letters_ask.html",
            going=going,
            staying=[(letter, fit.why) for letter, fit in zip(letters, fits, strict=True) if isinstance(fit, Unfit)],
            places=" ".join(str(letter.place) for letter in going),
            rest=rest,
            at=_moment,
        )

    async def replay(self, request: Request, viewer: Viewer, form: dict[str, str]) -> Response:
        """Sends exactly the letters that were shown: what died meanwhile is not among them."""
        texts = form.get("places", "").split()
        places = [place for text in texts if (place := _place(text)) is not None]
        if not places or len(places) != len(texts) or len(places) > MOST_AT_ONCE:
            raise Problem(Code.MALFORMED, f"name 1 to {MOST_AT_ONCE} dead letters by their places")
        letters, cluster = await self._letters.at(places)
        if not letters:
            raise Problem(Code.NOT_FOUND, "none of these dead letters lies there any more")
        origin = origin_of(request)
        await self._told(viewer, origin, "dlq.replay", letters)
        done = await self._letters.send(letters, cluster)
        refused = sum(isinstance(each, Unfit) for each in done)
        try:
            await self._told(viewer, origin, "dlq.replayed", letters, sent=len(done) - refused, refused=refused)
        except VlastreamError as error:
            # That it was begun is in the audit log.
            log.warning("the audit log lacks the end of a replay: %s", error, extra={"action": "dlq.replayed"})
        # Place of each letter, why it was not sent, where it lies now.
        became = [
            (str(letter.place), *((each.why, "") if isinstance(each, Unfit) else ("", str(each))))
            for letter, each in zip(letters, done, strict=True)
        ]
        told = sealed(viewer, {"became": became, "gone": len(places) - len(letters)})
        return self._frame.see_other(f"{REPLAYED}?told={told}")

    async def replayed(self, request: Request, viewer: Viewer) -> Response:
        """What became of each letter of a replay, however often it is looked at."""
        told = opened(viewer, request.query_params.get("told", ""))
        if told is None:
            raise Problem(Code.NOT_FOUND, "only the session that sent them again sees this; the audit log has it too")
        sent = sum(not why for _, why, _ in told["became"])
        return self._frame.respond(request, viewer, "dead_letters_done.html", sent=sent, **told)

    async def _told(
        self, viewer: Viewer, origin: str, action: str, letters: Sequence[Letter], **details: object
    ) -> None:
        topics = sorted({letter.topic for letter in letters})
        told = event(
            action,
            actor=viewer.key.actor,
            origin=origin,
            target=f"dead letters of {', '.join(topics)}"[:200],
            details={"letters": len(letters), "places": " ".join(str(letter.place) for letter in letters), **details},
        )
        await publish_event(self._publisher, told, source="console")


def _asked(request: Request) -> dict[str, str]:
    asked = {name: request.query_params.get(name, "").strip()[:249] for name in ("topic", "reason")}
    return {**asked, "topic": asked["topic"].removesuffix(DEAD_LETTER_SUFFIX)}


def _meant(entries: Sequence[Entry], reason: str) -> list[Entry]:
    return [entry for entry in entries if not reason or entry.reason == reason]


def _place(text: str) -> Source | None:
    """Where a letter lies; None for what is no place of a dead letter topic."""
    try:
        place = Source.parse(text)
    except ValueError:
        return None
    bounded = 0 <= place.partition < 2**31 and 0 <= place.offset < 2**63
    ours = place.topic.startswith("vla.") and place.topic.endswith(DEAD_LETTER_SUFFIX)
    return place if bounded and ours and str(place) == text else None


def _moment(at_ms: int) -> datetime | None:
    """Append times are the broker's; one beyond the calendar is not known."""
    try:
        return datetime.fromtimestamp(at_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return None
