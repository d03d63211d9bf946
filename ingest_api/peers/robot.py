"""A robot behind a peer's protocol: its observations become requests of the one path, numbered and told apart."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from ingest_api.exchange import Actions, Exchange
from ingest_api.key_stores import KeyRecord
from ingest_api.peers.observation import Seen, observe
from ingest_api.peers.pictures import images_of
from ingest_api.problems import Problem, fault
from ingest_api.query import Parameters
from runtime.errors import VlastreamError
from schemas.cards import CardSet, ModelCard
from schemas.codes import Code
from schemas.hold import HoldRule
from schemas.messages import Image, InferenceRequest

Chunk = NDArray[np.float32]
Authenticate = Callable[[], Awaitable[KeyRecord]]
#: Refusals that a robot can wait out; what the caller must mend is never held over.
HELD = frozenset(
    {
        Code.STOPPED, Code.QUOTA, Code.OVERLOADED, Code.NO_WORKER, Code.UNAVAILABLE, Code.EXPIRED, Code.SUPERSEDED,
        Code.POLICY_REFUSED, Code.POLICY_FAILED, Code.UNSAFE_ACTION, Code.TIMEOUT, Code.INTERNAL,
    }
)  # fmt: skip


class PeerOptions(Parameters):
    """What a URL may say where a protocol has no word for it."""

    robot_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._:-]{1,64}$", description="default: made up")
    robot_type: str | None = Field(default=None, max_length=64, description="default: the model card's first")
    ttl_ms: Annotated[int, BeforeValidator(int), Field(ge=1, le=60_000)] | None = None
    on_refusal: Literal["error", "hold"] = Field(default="error", description="what a refusal becomes")
    images: Literal["jpeg", "rgb8"] = Field(default="jpeg", description="how pixels are recorded")


def card_of(cards: CardSet, model: str) -> ModelCard:
    """The first deployment of a model; empty: the default model. Raises Problem 404."""
    name = model or cards.default_model or ""
    found = cards.deployments(name)
    if not found:
        known = ", ".join(sorted({card.model for card in cards.models})) or "none"
        detail = f"this model is not served; known are: {known}"
        raise Problem(Code.UNKNOWN_MODEL, detail, violations=[fault("model", "unknown_model", detail)])
    return found[0]


class PeerRobot:
    """Asks for one robot, one request at a time.

    Steps are counted here, so that a simulator's identical frames are no duplicates. An episode begins with another
    instruction, after a refusal, and when `begin` says so: the continuity check compares within one only.
    """

    def __init__(
        self, *, exchange: Exchange, cards: CardSet, card: ModelCard, options: PeerOptions, robot_id: str, ttl_ms: int
    ) -> None:
        self.robot_id = options.robot_id or robot_id
        self.robot_type = options.robot_type or card.embodiments[0]
        self.episode_id = ""
        self.card = card
        self._exchange = exchange
        self._options = options
        self._ttl_ms = options.ttl_ms or ttl_ms
        self._step = 0
        self._instruction: str | None = None
        self._last: NDArray[np.float32] | None = None
        embodiment = cards.embodiment(self.robot_type)
        self._hold = HoldRule.of(embodiment) if embodiment is not None else None

    def begin(self, episode_id: str = "") -> None:
        """A new episode."""
        self.episode_id = episode_id or str(uuid.uuid4())
        self._step = 0
        self._instruction = None
        self._last = None

    def executed(self, action: NDArray[np.float32]) -> None:
        """What the robot was given last: what it repeats while it holds."""
        self._last = action

    def held(self, problem: Problem) -> NDArray[np.float32] | None:
        """The action (action_dim,) that stands in for a refusal; None: the refusal is told as an error."""
        if self._options.on_refusal != "hold" or problem.code not in HELD or self._hold is None:
            return None
        return self._hold.action(self._last)

    async def ask(self, content: object, size_bytes: int, authenticate: Authenticate) -> Actions:
        """Actions for an observation. Raises Problem, counted already."""
        case = self._exchange.begin()
        try:
            key = await authenticate()
            await self._exchange.allow(case, key)
            await self._exchange.allow_robot(key, self.robot_id)
            with self._exchange.admit(key, size_bytes) as slot:
                cards = self._exchange.name(case, model=self.card.model, robot_type=self.robot_type)
                seen, images = await asyncio.to_thread(self._read, content, cards[0])
                if not self.episode_id or self._instruction not in (None, seen.instruction):
                    self.begin()
                self._instruction = seen.instruction
                message = InferenceRequest(
                    request_id=case.request_id,
                    robot_id=self.robot_id,
                    robot_type=self.robot_type,
                    model=case.model,
                    instruction=seen.instruction,
                    images=images,
                    state=seen.state,
                    episode_id=self.episode_id,
                    step=self._step,
                    ttl_ms=self._ttl_ms,
                )
                self._step += 1
                future, _ = self._exchange.send(message, case, key, slot)
                reply = await self._exchange.reply(future)
                slot.served()
            actions = self._exchange.actions(reply, case)
        except VlastreamError as error:
            last = self._last
            self.begin()
            self._last = last
            problem = self._exchange.refused(error, case)
            problem.members["request_id"] = case.request_id
            raise problem from error
        self._exchange.answered(case)
        return actions

    def _read(self, content: object, card: ModelCard) -> tuple[Seen, list[Image]]:
        seen = observe(content, card)
        return seen, images_of(seen.pictures, exact=self._options.images == "rgb8")


def matrix_of(actions: Actions) -> Chunk:
    """(horizon, action_dim) float32."""
    matrix = actions.outcome.chunk.actions
    return np.array(matrix.values, np.float32).reshape(matrix.horizon, matrix.dim)


def sentence(problem: Problem) -> str:
    """A refusal as one text, for protocols whose errors are text."""
    request_id = problem.members.get("request_id", "")
    return f"{problem.code} ({problem.status}): {problem.detail}" + (f" [request {request_id}]" if request_id else "")
