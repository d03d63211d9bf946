"""/v1/robots: which robot types are known, and robot types that a customer brings.

The installation's types are for everybody; with a key a customer sees its own beside them. A card of its own holds for
its own robots, in monitor mode, wherever a deployment serves `custom` robots that look like it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from fastapi import APIRouter, Request, Response

from ingest_api import openapi
from ingest_api.keys import KeyRing, origin_of
from ingest_api.problems import Problem, fault
from ingest_api.publishing import ACK_TIMEOUT_S
from ingest_api.reading import answer
from ingest_api.request_body import parse_body, read_body
from runtime.embodiments import MAX_CARD_BYTES, RobotTypes, next_embodiment, publish_embodiment
from runtime.errors import Reject
from runtime.publisher import PublisherPort
from schemas.cards import CUSTOM, CardSet, EmbodimentCard, ModelCard
from schemas.codes import Code
from schemas.messages import OwnEmbodiment
from schemas.scopes import Scope

#: A card that drives what the test arm of the documentation is: of every field that a robot has to state.
EXAMPLE: dict[str, Any] = {
    "robot_type": "my_arm",
    "title": "Two joints and a gripper, built here",
    "source": "measured by us",
    "verified": False,
    "control_rate_hz": 20,
    "state": [{"name": "j1", "unit": "rad"}, {"name": "j2", "unit": "rad"}, {"name": "grip", "unit": "1"}],
    "actions": [
        {"name": "j1", "unit": "rad", "kind": "absolute", "low": -3.1, "high": 3.1, "max_velocity": 2.0},
        {"name": "j2", "unit": "rad", "kind": "absolute", "low": -1.5, "high": 1.5, "max_velocity": 2.0},
        {"name": "grip", "unit": "1", "kind": "binary", "low": 0, "high": 1},
    ],
    "gripper": {"action_index": 2, "open_value": 1, "closed_value": 0},
    "space": {"name": "joint_position", "control": "joint_position", "state_index": [0, 1]},
}


class RobotRoutes:
    """`timeout_s`: how long the broker's acknowledgement is waited for."""

    def __init__(
        self, *, robots: RobotTypes, keys: KeyRing, publisher: PublisherPort, timeout_s: float = ACK_TIMEOUT_S
    ) -> None:
        self._robots = robots
        self._keys = keys
        self._publisher = publisher
        self._timeout_s = timeout_s

    async def list(self, request: Request) -> Response:
        customer_id = await self._who_asks(request)
        cards = [*self._robots.cards.embodiments, *(self._robots.all_own(customer_id) if customer_id else [])]
        return answer({"robots": [self._summary(card) for card in cards]})

    async def get(self, request: Request, robot_type: str) -> Response:
        customer_id = await self._who_asks(request)
        card = self._robots.find(customer_id, robot_type)
        if card is None:
            raise _unknown(robot_type)
        return answer(self._document(card, customer_id))

    async def put(self, request: Request, robot_type: str) -> Response:
        """200 once the broker has it; it holds for requests from a second later on."""
        key = await self._keys.of(request)
        card = parse_body(await read_body(request, MAX_CARD_BYTES), EmbodimentCard)
        if card.robot_type != robot_type:
            detail = f"the card's robot_type is not the one of the path: {robot_type[:64]}"
            raise Problem(Code.MALFORMED, detail, violations=[fault("robot_type", "differs", detail)])
        origin = request.client.host if request.client is not None else "unknown"
        try:
            record = next_embodiment(self._robots, key.customer_id, card, who=f"key {key.key_id}", origin=origin)
        except Reject as refusal:
            raise Problem(
                refusal.code, str(refusal), violations=[fault(refusal.field, "refused", str(refusal))]
            ) from refusal
        await self._publish(key.customer_id, robot_type, record)
        return answer({**self._document(card, ""), "own": True, "version": record.version})

    async def delete(self, request: Request, robot_type: str) -> Response:
        """200 once the broker has it: requests of such robots are refused from a second later on."""
        key = await self._keys.of(request)
        if self._robots.record(key.customer_id, robot_type) is None:
            raise _unknown(robot_type)
        await self._publish(key.customer_id, robot_type, None)
        return answer({"robot_type": robot_type, "withdrawn": True})

    async def _who_asks(self, request: Request) -> str:
        """The customer of the key, if there is one: what the installation serves is no secret."""
        authorization = request.headers.get("authorization")
        if not authorization:
            return ""
        return (await self._keys.authenticate(authorization, None, origin=origin_of(request))).customer_id

    async def _publish(self, customer_id: str, robot_type: str, record: OwnEmbodiment | None) -> None:
        sending = publish_embodiment(self._publisher, customer_id, robot_type, record)
        try:
            await asyncio.wait_for(sending, self._timeout_s)
        except TimeoutError as error:
            detail = "Kafka has not confirmed the card: send it again"
            raise Problem(Code.UNAVAILABLE, detail, retry_after_s=1.0) from error

    def _summary(self, card: EmbodimentCard) -> dict[str, Any]:
        own = self._robots.cards.embodiment(card.robot_type) is None
        return {
            "robot_type": card.robot_type,
            "title": card.title,
            "own": own,
            "verified": card.verified and not own,
            "state_dim": len(card.state),
            "action_dim": len(card.actions),
            "action_spaces": list(card.space_names),
            "models": sorted({model.model for model in serving(self._robots.cards, card, own=own)}),
        }

    def _document(self, card: EmbodimentCard, customer_id: str) -> dict[str, Any]:
        record = self._robots.record(customer_id, card.robot_type)
        summary = self._summary(card)
        content = json.loads(card.model_dump_json(exclude_defaults=True))
        version = {"version": record.version} if summary["own"] and record is not None else {}
        return {**summary, **version, "card": {**content, "verified": summary["verified"]}}


def serving(cards: CardSet, robot: EmbodimentCard, *, own: bool) -> list[ModelCard]:
    """Deployments that drive a robot."""
    if own:
        return [model for model in cards.models if model.custom_misfit(robot) is None]
    return [model for model in cards.models if robot.robot_type in model.embodiments and robot.robot_type != CUSTOM]


def build_router(routes: RobotRoutes) -> APIRouter:
    router = APIRouter(tags=["robots"])
    add: Any = router.add_api_route
    one = openapi.json_answer("RobotType", "the robot type and its card")
    plain: dict[str, Any] = {"response_class": Response}
    listed = openapi.json_answer("RobotTypes", "robot types that are known")
    answers = listed | openapi.problems(401, 403, 503)
    add("/v1/robots", routes.list, methods=["GET"], summary="Robot types", responses=answers, **plain)
    place = "/v1/robots/{robot_type}"
    refusals = openapi.problems(401, 403, 404, 503)
    add(place, routes.get, methods=["GET"], summary="One robot type", responses=one | refusals, **plain)
    add(
        place,
        routes.put,
        methods=["PUT"],
        summary="Bring a robot type of your own",
        response_class=Response,
        responses={**one, **openapi.problems(400, 401, 403, 413, 422, 503)},
        openapi_extra=openapi.json_body("EmbodimentCard", Scope.DATA, EXAMPLE),
    )
    add(
        place,
        routes.delete,
        methods=["DELETE"],
        summary="Withdraw a robot type of your own",
        response_class=Response,
        responses={**openapi.json_answer("Withdrawn", "the log has it"), **refusals},
        openapi_extra=openapi.secured(Scope.DATA),
    )
    return router


def _unknown(robot_type: str) -> Problem:
    detail = "no robot type of this name is known: see /v1/robots"
    return Problem(Code.NOT_FOUND, detail, violations=[fault("robot_type", "unknown", f"{robot_type}: {detail}")])
