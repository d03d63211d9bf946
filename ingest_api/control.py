"""POST /v1/control: stop and resume robots, so that no action reaches them.

Whose key may do what: any key with scope `control`, robots and the fleet of its own customer; one of tier
`enterprise` or with scope `admin`, a whole model or everything as well. What belongs to other customers one by
one is for `vlastream stop`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

import orjson
from fastapi import Request, Response
from pydantic import Field

from ingest_api.key_stores import KeyRecord
from ingest_api.keys import KeyRing, origin_of
from ingest_api.problems import Problem, fault
from ingest_api.request_body import Body, parse_body, read_body
from runtime.control import (
    ALL,
    MAX_WHO,
    MAX_WHY,
    control_record,
    fleet_target,
    model_target,
    publish_control,
    robot_target,
)
from runtime.errors import Reject
from runtime.publisher import PublisherPort
from schemas.cards import CardSet
from schemas.codes import Code
from schemas.scopes import Scope

log = logging.getLogger(__name__)

#: The tier whose keys may stop what other customers use too.
WIDE_TIER = "enterprise"
_LARGEST_BODY_BYTES = 16 * 1024
#: An operator wants to know within seconds that a stop does not hold.
_ACK_TIMEOUT_S = 5.0


class ControlBody(Body):
    """What to stop or resume, and why. `robot_id` goes with scope robot, `model` with scope model."""

    action: Literal["stop", "resume"]
    scope: Literal["robot", "fleet", "model", "all"] = Field(description="model and all: keys of tier enterprise only")
    robot_id: str | None = Field(default=None, description="a robot of your own")
    model: str | None = None
    reason: str = Field(min_length=1, max_length=MAX_WHY, description="kept with it, and told to the robots it stops")
    by: str | None = Field(default=None, max_length=MAX_WHO // 2, description="who decides; the key is noted besides")


class ControlRoute:
    """`timeout_s`: how long the broker's acknowledgement is waited for."""

    def __init__(
        self, *, cards: CardSet, keys: KeyRing, publisher: PublisherPort, timeout_s: float = _ACK_TIMEOUT_S
    ) -> None:
        self._cards = cards
        self._keys = keys
        self._publisher = publisher
        self._timeout_s = timeout_s

    async def post(self, request: Request) -> Response:
        """200 once the broker has the record: within a second from then no action reaches what it stops."""
        key = await self._keys.of(request)
        body = parse_body(await read_body(request, _LARGEST_BODY_BYTES), ControlBody)
        content = await self.decide(body, key, origin_of(request))
        return Response(orjson.dumps(content), media_type="application/json")

    async def decide(self, body: ControlBody, key: KeyRecord, origin: str) -> dict[str, Any]:
        """Stop or resume as somebody with this key wants it: the record as the log has it. Raises Problem."""
        try:
            target = self._target(body, key)
            who = f"{body.by} " if body.by else ""
            control = control_record(
                target,
                stopped=body.action == "stop",
                who=f"{who}({key.actor})",
                why=body.reason,
            )
        except Reject as refusal:
            raise Problem(
                Code.MALFORMED, str(refusal), violations=[fault(refusal.field, "malformed", str(refusal))]
            ) from refusal
        try:
            where = await asyncio.wait_for(publish_control(self._publisher, control, origin=origin), self._timeout_s)
        except TimeoutError as error:
            detail = f"Kafka has not confirmed the {body.action}: it may not hold, send it again"
            raise Problem(Code.UNAVAILABLE, detail, retry_after_s=1.0) from error
        log.warning("%s: %s", body.action, target, extra={"action": body.action, "reason": control.why})
        return {
            "target": target,
            "stopped": control.stopped,
            "who": control.who,
            "why": control.why,
            "at_ms": where.timestamp_ms,
            "record": f"{where.topic}/{where.partition}/{where.offset}",
        }

    def _target(self, body: ControlBody, key: KeyRecord) -> str:
        """Raises Problem for a target that is not the key's to touch, Reject for one that cannot be."""
        _check_fields(body)
        if body.scope in ("model", "all") and key.tier != WIDE_TIER and Scope.ADMIN not in key.scopes:
            detail = f"scope {body.scope} stops other customers' robots too: it takes a key of tier {WIDE_TIER}"
            raise Problem(Code.FORBIDDEN, detail, violations=[fault("scope", "tier", detail)])
        if body.scope == "robot":
            return robot_target(key.customer_id, body.robot_id or "")
        if body.scope == "fleet":
            return fleet_target(key.customer_id)
        if body.scope == "all":
            return ALL
        model = body.model or ""
        # A model that is gone from the cards may still be resumed.
        if body.action == "stop" and not self._cards.deployments(model):
            detail = "no model has this name: see /v1/models"
            raise Problem(Code.UNKNOWN_MODEL, detail, violations=[fault("model", "unknown_model", detail)])
        return model_target(model)


def _check_fields(body: ControlBody) -> None:
    """A name that the scope does not take is a mistake about what will stop."""
    for field, value, scope in (("robot_id", body.robot_id, "robot"), ("model", body.model, "model")):
        if (value is not None) != (body.scope == scope):
            detail = f"`{field}` goes with scope {scope}, and only with it; this is scope {body.scope}"
            reason = "missing" if value is None else "unexpected"
            raise Problem(Code.MALFORMED, detail, violations=[fault(field, reason, detail)])
