"""/console/episodes: which episodes there are, and one played back frame by frame with its actions."""

from __future__ import annotations

import uuid
from typing import Any
from urllib.parse import unquote, urlencode

from fastapi import Request, Response

from ingest_api.console.formats import in_path
from ingest_api.console.frame import Frame
from ingest_api.console.frames import cameras
from ingest_api.console.inspection import inspected, place_of_request
from ingest_api.console.log_frames import LogPort
from ingest_api.console.playback import (
    MOST_STEPS,
    counted_query,
    merged,
    playback,
    seen_query,
    steps_query,
    told_query,
)
from ingest_api.console.session import ROOT, Viewer
from ingest_api.episodes import EpisodeList, list_query
from ingest_api.history import row_query
from ingest_api.problems import Problem
from ingest_api.query import parsed
from ingest_api.reading import Reader, Row, read
from runtime.embodiments import RobotTypes
from runtime.errors import Unavailable
from schemas.cards import EmbodimentCard
from schemas.codes import Code
from schemas.scopes import Scope

EPISODES = f"{ROOT}/episodes"
_MOST_ROWS = 100
_OUTCOMES = {"done": "true", "failed": "false"}
#: A table of more rows than this helps nobody; the curves and the player have them all.
_MOST_TABLED = 500


def path_of(episode_id: str) -> str:
    return f"{EPISODES}/{in_path(episode_id)}"


class EpisodePages:
    """log: where frames are. kept_days: how long it has them."""

    def __init__(self, frame: Frame, *, reader: Reader, robots: RobotTypes, log: LogPort, kept_days: int) -> None:
        self._frame = frame
        self._reader = reader
        self._robots = robots
        self._log = log
        self._kept_days = kept_days
        frame.shows(EPISODES, self.list, Scope.READ)
        frame.shows(f"{EPISODES}/{{episode_id}}", self.one, Scope.READ)

    async def list(self, request: Request, viewer: Viewer) -> Response:
        asked = {name: request.query_params.get(name, "").strip() for name in ("robot_id", "outcome")}
        given = {"robot_id": asked["robot_id"]} if asked["robot_id"] else {}
        judged = _OUTCOMES.get(asked["outcome"])
        if judged is not None:
            given["success"] = judged
        wanted = parsed({**given, "limit": str(_MOST_ROWS)}, EpisodeList)
        told = await read(self._reader, list_query(wanted, viewer.customer_id))
        # What is told nowhere but in requests was judged by nobody.
        seen: list[Row] = []
        if judged is None:
            seen = await read(self._reader, seen_query(wanted.robot_id, viewer.customer_id, _MOST_ROWS))
        known = {(row["robot_id"], row["episode_id"]) for row in seen}
        if old := [row for row in told if (row["robot_id"], row["episode_id"]) not in known]:
            seen += await read(self._reader, counted_query(old, viewer.customer_id))
        rows = merged(told, seen, viewer.customer_id, _MOST_ROWS)
        if judged is not None:
            rows = [row for row in rows if row["success"] is not None]
        return self._frame.respond(
            request, viewer, "episodes.html", rows=[{**row, "path": _link(row, viewer)} for row in rows], asked=asked
        )

    async def one(self, request: Request, viewer: Viewer) -> Response:
        episode_id = unquote(str(request.path_params["episode_id"]))
        robot_id = request.query_params.get("robot_id", "").strip() or None
        nameable = all("\x00" not in text for text in (episode_id, robot_id or ""))
        query = steps_query(episode_id, robot_id, viewer.customer_id)
        rows = await read(self._reader, query) if nameable else []
        if not rows:
            raise Problem(Code.NOT_FOUND, "no request of yours belongs to this episode")
        first = rows[0]
        rows = [
            row for row in rows if (row["customer_id"], row["robot_id"]) == (first["customer_id"], first["robot_id"])
        ]
        number = _number(request.query_params.get("step", ""), len(rows))
        current = playback(rows, self._card(rows[number]))
        content = await self._step(rows[number], viewer)
        is_part = request.headers.get("hx-request") == "true"
        told = (
            [] if is_part else await read(self._reader, told_query(episode_id, first["robot_id"], first["customer_id"]))
        )
        return self._frame.respond(
            request,
            viewer,
            "episode.html",
            part="episode_step.html",
            episode_id=episode_id,
            base=path_of(episode_id),
            kept=urlencode(_kept(first, viewer)),
            play=current,
            number=number,
            step=rows[number],
            acted=current.acted(number),
            told=told[0] if told else {"task": None, "success": None},
            is_cut=len(rows) == MOST_STEPS,
            tabled=len(rows) <= _MOST_TABLED,
            **content,
        )

    async def _step(self, step: Row, viewer: Viewer) -> dict[str, Any]:
        """The frame and the whole chunk of one step."""
        found = await read(self._reader, row_query(uuid.UUID(str(step["id"])), viewer.customer_id))
        if not found:
            raise Problem(Code.NOT_FOUND, "this request was erased meanwhile")
        row, message, missing = found[0], None, ""
        try:
            message = await self._log.request(place_of_request(row))
        except Unavailable as error:
            missing = str(error)
        if message is None and not missing:
            missing = f"no longer in the log, which keeps requests for {self._kept_days} days"
        return {
            "row": row,
            "seen": inspected(row, None, self._card(row)),
            "cameras": cameras(message) if message is not None else [],
            "frames_missing": missing,
        }

    def _card(self, row: Row) -> EmbodimentCard | None:
        card = self._robots.find(row["customer_id"], row["robot_type"])
        model = self._robots.cards.deployment(row["deployment"] or "")
        return model.commanded(card) if card is not None and model is not None else card


def _kept(row: Row, viewer: Viewer) -> dict[str, str]:
    """What every link to an episode says beside its id: ids are unique for one robot of one customer."""
    whose = {"customer": str(row["customer_id"])} if viewer.is_operator and row["customer_id"] else {}
    return {"robot_id": str(row["robot_id"]), **whose}


def _link(row: Row, viewer: Viewer) -> str:
    return f"{path_of(row['episode_id'])}?{urlencode(_kept(row, viewer))}"


def _number(text: str, count: int) -> int:
    """Which step is meant; what is none is the first, what is beyond the end the last."""
    return min(int(text), count - 1) if text.isascii() and text.isdigit() and len(text) < 10 else 0
