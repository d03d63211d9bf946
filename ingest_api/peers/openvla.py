"""OpenVLA's REST, as its deploy.py serves it: POST /act with image, instruction, unnorm_key; one action back."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import numpy as np
import orjson
from fastapi import Request, Response
from numpy.typing import NDArray

from ingest_api.credentials import as_bearer
from ingest_api.keys import origin_of
from ingest_api.peers.arrays import from_json, to_json, unreadable
from ingest_api.peers.door import PeerServices
from ingest_api.peers.robot import PeerOptions, PeerRobot, card_of, matrix_of
from ingest_api.problems import Problem, fault
from ingest_api.query import parse_query
from ingest_api.request_body import parse_json, read_body
from schemas.cards import ModelCard
from schemas.codes import Code

#: Robots whose step and last action are remembered; the one that asked longest ago is forgotten.
_MOST_ROBOTS = 4096


class ActQuery(PeerOptions):
    model: str | None = None


class ActRoute:
    def __init__(self, services: PeerServices) -> None:
        self._services = services
        self._robots: OrderedDict[tuple[str, ActQuery], PeerRobot] = OrderedDict()

    async def post(self, request: Request) -> Response:
        """One action for one observation: the first of the chunk."""
        services = self._services
        authorization = as_bearer(request.headers.get("authorization"))
        authenticate = partial(services.keys.authenticate, authorization, origin=origin_of(request))
        key = await authenticate()
        query = parse_query(request, ActQuery)
        card = card_of(services.cards, query.model or "")
        raw = await read_body(request, services.settings.stream_max_frame_bytes)
        content, doubled = _content(raw)
        _check_pairing(content, card)
        robot = self._robot(key.customer_id, query, card)
        try:
            action = matrix_of(await robot.ask(content, len(raw), authenticate))[0]
        except Problem as problem:
            held = robot.held(problem)
            if held is None:
                raise
            action = held
        robot.executed(action)
        return _answer(action, doubled=doubled)

    def _robot(self, customer_id: str, query: ActQuery, card: ModelCard) -> PeerRobot:
        identity = (customer_id, query)
        robot = self._robots.get(identity)
        if robot is None:
            options = PeerOptions.model_validate(query.model_dump(exclude={"model"}))
            robot = PeerRobot(
                exchange=self._services.exchange,
                cards=self._services.cards,
                card=card,
                options=options,
                robot_id="openvla",
                ttl_ms=self._services.settings.default_ttl_ms,
            )
            self._robots[identity] = robot
        self._robots.move_to_end(identity)
        while len(self._robots) > _MOST_ROBOTS:
            self._robots.popitem(last=False)
        return robot


def _content(raw: bytes) -> tuple[dict[str, Any], bool]:
    """The observation, and whether it came as a JSON text within JSON. Raises Problem 400."""
    content = parse_json(raw)
    doubled = "encoded" in content
    if doubled:
        if len(content) != 1 or not isinstance(content["encoded"], str):
            raise unreadable("`encoded` is the one field, and a text of JSON")
        content = parse_json(content["encoded"].encode())
    found = from_json(content)
    if not isinstance(found, dict):
        raise unreadable("an observation is a JSON object with image and instruction")
    return found, doubled


def _check_pairing(content: dict[str, Any], card: ModelCard) -> None:
    """Raises Problem 422 where the caller wants other statistics than the model's card has."""
    wanted = content.pop("unnorm_key", None)
    served = {card.policy_config.get("unnorm_key"), *(pairing.unnorm_key for pairing in card.pairings.values())}
    named = sorted(str(key) for key in served if key)
    if wanted is not None and named and wanted not in named:
        keys = ", ".join(named)
        detail = f"{card.model} is served with the statistics of {keys}: leave unnorm_key out, or ask another model"
        raise Problem(Code.EMBODIMENT_MISMATCH, detail, violations=[fault("unnorm_key", "mismatch", detail)])


def _answer(action: NDArray[np.float32], *, doubled: bool) -> Response:
    content = orjson.dumps(to_json(np.asarray(action, np.float32)))
    return Response(orjson.dumps(content.decode()) if doubled else content, media_type="application/json")
