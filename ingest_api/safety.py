"""POST /v1/safety/evaluate: the action gate's rules on actions that somebody brings."""

from __future__ import annotations

import difflib
from typing import Any, Literal

import numpy as np
import orjson
from fastapi import Request, Response
from numpy.typing import NDArray
from pydantic import Field

from ingest_api.answers import mode_name
from ingest_api.keys import KeyRing
from ingest_api.problems import Problem, fault
from ingest_api.request_body import SAFETY_MODES, Body, parse_body, read_body
from runtime.embodiments import RobotTypes
from runtime.settings import Settings
from schemas.action_rules import Verdict, evaluate_chunk
from schemas.cards import EmbodimentCard
from schemas.codes import Code
from schemas.messages import SafetyMode

_MOST_STEPS = 256
_LARGEST_BODY_BYTES = 256 * 1024


class SafetyBody(Body):
    """One of `actions` (horizon, dim) and `action` (dim), in the units of the embodiment card."""

    robot_type: str
    space: str | None = Field(default=None, description="one of the robot's action spaces; default: its first")
    actions: list[list[float]] | None = Field(default=None, min_length=1, max_length=_MOST_STEPS)
    action: list[float] | None = None
    state: list[float] | None = Field(default=None, description="before the first action")
    previous: list[list[float]] | None = Field(default=None, max_length=_MOST_STEPS, description="the chunk before")
    mode: Literal["reject", "clamp", "monitor"] | None = Field(
        default=None, description="default: reject for a verified card, monitor for another"
    )


class SafetyRoute:
    def __init__(self, *, settings: Settings, robots: RobotTypes, keys: KeyRing) -> None:
        self._settings = settings
        self._robots = robots
        self._keys = keys

    async def post(self, request: Request) -> Response:
        """200 with the report where the actions may be executed, 422 `unsafe_action` where not."""
        key = await self._keys.of(request)
        limit = min(self._settings.max_body_bytes, _LARGEST_BODY_BYTES)
        body = parse_body(await read_body(request, limit), SafetyBody)
        card = _in_space(self._card(key.customer_id, body.robot_type), body.space or "")
        verdict = evaluate_chunk(
            _matrix(_rows(body), "actions"),
            card,
            state=_state(body, card),
            previous=None if not body.previous else _matrix(body.previous, "previous"),
            mode=SAFETY_MODES[body.mode] if body.mode is not None else SafetyMode.SAFETY_MODE_UNSPECIFIED,
            min_score=self._settings.min_safety_score,
        )
        report = _report(verdict)
        if not verdict.passed:
            needed = self._settings.min_safety_score
            detail = f"{verdict.worst_check} scores {verdict.score:.2f}, at least {needed} is needed"
            violations = [fault(v.field, v.reason, v.detail) for v in verdict.violations]
            raise Problem(Code.UNSAFE_ACTION, detail, violations=violations, members={"safety": report})
        content = {"robot_type": card.robot_type, "passed": True, "safety": report, "actions": verdict.actions}
        return Response(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    def _card(self, customer_id: str, robot_type: str) -> EmbodimentCard:
        card = self._robots.find(customer_id, robot_type)
        if card is None:
            known = sorted(c.robot_type for c in self._robots.cards.embodiments)
            near = difflib.get_close_matches(robot_type[:64].strip().lower(), known, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(near)}?" if near else f"known are: {', '.join(known[:20])}"
            detail = f"this robot type has no card; {hint}"
            violation = fault("robot_type", "unsupported_robot_type", detail)
            raise Problem(Code.INVALID_ROBOT_TYPE, detail, violations=[violation])
        return card


def _in_space(card: EmbodimentCard, space: str) -> EmbodimentCard:
    try:
        return card.in_space(space)
    except KeyError as error:
        detail = f"{card.robot_type} is commanded in: {', '.join(card.space_names)}"
        violation = fault("space", "unknown_space", detail)
        raise Problem(Code.EMBODIMENT_MISMATCH, detail, violations=[violation]) from error


def _rows(body: SafetyBody) -> list[list[float]]:
    if (body.actions is None) == (body.action is None):
        detail = "send `actions`, a list of rows, or `action`, one row: one of the two"
        reason = "missing" if body.action is None else "ambiguous"
        raise Problem(Code.MALFORMED, detail, violations=[fault("actions", reason, detail)])
    return body.actions if body.actions is not None else [body.action or []]


def _matrix(rows: list[list[float]], field: str) -> NDArray[np.float32]:
    """(horizon, dim) float32. Raises Problem 400 for rows of different lengths."""
    if len({len(row) for row in rows}) != 1:
        detail = "every row has the same number of values"
        raise Problem(Code.MALFORMED, f"{field}: {detail}", violations=[fault(field, "ragged", detail)])
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=np.float64).astype(np.float32)


def _state(body: SafetyBody, card: EmbodimentCard) -> NDArray[np.float32] | None:
    """Raises Problem 422 for a state that the rules could not use."""
    if body.state is None:
        return None
    with np.errstate(over="ignore"):
        state = np.array(body.state, dtype=np.float64).astype(np.float32)
    wanted = len(card.state)
    if len(state) != wanted:
        detail = f"{card.robot_type} has {wanted} values, these are {len(state)}"
        raise Problem(Code.INVALID_STATE, detail, violations=[fault("state", "wrong_length", detail)])
    if not np.isfinite(state).all():
        detail = "a value is NaN, infinite or beyond float32"
        raise Problem(Code.INVALID_STATE, detail, violations=[fault("state", "not_finite", detail)])
    return state


def _report(verdict: Verdict) -> dict[str, Any]:
    return {
        "score": verdict.score,
        "mode": mode_name(verdict.mode),
        "modified": verdict.modified,
        "checks": verdict.checks,
        "violations": [{"field": v.field, "reason": v.reason, "detail": v.detail} for v in verdict.violations],
    }
