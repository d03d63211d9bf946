"""Robot types: those of the installation's cards, and beside them what customers brought by vla.embodiments.v1."""

from __future__ import annotations

import threading
import time

from runtime.errors import Reject
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.cards import CardSet, EmbodimentCard
from schemas.codes import Code
from schemas.messages import OwnEmbodiment
from schemas.topics import EMBODIMENTS

#: Of one card, and cards of one customer: every gate and API process holds all of them.
MAX_CARD_BYTES = 32 * 1024
MAX_CARDS = 32


class RobotTypes:
    """Thread-safe: a view writes, others read. The installation's cards come first: nobody brings another of theirs."""

    def __init__(self, cards: CardSet) -> None:
        self.cards = cards
        self._lock = threading.Lock()
        self._own: dict[str, tuple[OwnEmbodiment, EmbodimentCard]] = {}

    def update(self, key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        """Raises ValueError for a card that this version cannot read: it then is as if withdrawn."""
        name = key.decode("utf-8", "replace")
        with self._lock:
            self._own.pop(name, None)
        if value is None:
            return
        record = OwnEmbodiment.FromString(value)
        card = EmbodimentCard.model_validate_json(record.card)
        # What nobody has checked is watched only, whatever it says of itself.
        card = card.model_copy(update={"verified": False})
        if name != own_key(record.customer_id, record.robot_type) or card.robot_type != record.robot_type:
            raise ValueError(f"the card at {name!r} is of another customer or robot type")
        with self._lock:
            self._own[name] = (record, card)

    def find(self, customer_id: str, robot_type: str) -> EmbodimentCard | None:
        """The card that holds for a customer's robots of this type."""
        return self.cards.embodiment(robot_type) or self.own(customer_id, robot_type)

    def own(self, customer_id: str, robot_type: str) -> EmbodimentCard | None:
        """A card that the customer brought, if the installation has none of that name."""
        if self.cards.embodiment(robot_type) is not None:
            return None
        with self._lock:
            found = self._own.get(own_key(customer_id, robot_type))
        return found[1] if found is not None else None

    def record(self, customer_id: str, robot_type: str) -> OwnEmbodiment | None:
        with self._lock:
            found = self._own.get(own_key(customer_id, robot_type))
        return found[0] if found is not None else None

    def all_own(self, customer_id: str) -> list[EmbodimentCard]:
        """Every card that a customer brought, by robot type."""
        with self._lock:
            found = [card for record, card in self._own.values() if record.customer_id == customer_id]
        return sorted(found, key=lambda card: card.robot_type)


def own_key(customer_id: str, robot_type: str) -> str:
    """A robot type has no slash, so the last one parts the two."""
    return f"{customer_id}/{robot_type}"


def next_embodiment(
    robots: RobotTypes, customer_id: str, card: EmbodimentCard, *, who: str, origin: str
) -> OwnEmbodiment:
    """The record that makes a customer's card hold. Raises Reject for one that it may not bring."""
    if robots.cards.embodiment(card.robot_type) is not None:
        detail = f"{card.robot_type} is a robot type of this installation: choose another name"
        raise Reject(Code.INVALID_REQUEST, detail, field="robot_type")
    if card.verified or any(space.verified for space in card.alternatives):
        detail = "only the operator can vouch for limits, by a file among the installation's cards: say verified: false"
        raise Reject(Code.INVALID_REQUEST, detail, field="verified")
    before = robots.record(customer_id, card.robot_type)
    if before is None and len(robots.all_own(customer_id)) >= MAX_CARDS:
        raise Reject(Code.INVALID_REQUEST, f"you have {MAX_CARDS} robot types: withdraw one", field="robot_type")
    content = card.model_dump_json(exclude_defaults=True).encode()
    if len(content) > MAX_CARD_BYTES:
        raise Reject(Code.TOO_LARGE, f"the card has {len(content)} bytes: at most {MAX_CARD_BYTES}", field="body")
    return OwnEmbodiment(
        customer_id=customer_id,
        robot_type=card.robot_type,
        card=content,
        version=before.version + 1 if before is not None else 1,
        who=who,
        origin=origin,
        at_ms=round(time.time() * 1000),
    )


async def publish_embodiment(
    publisher: PublisherPort, customer_id: str, robot_type: str, record: OwnEmbodiment | None
) -> Delivered:
    """Write a record, or with None a tombstone, and wait for the broker. Raises Retry, Unavailable or Fatal."""
    key = own_key(customer_id, robot_type)
    version = record.version if record is not None else 0
    attributes = h.cloud_event(
        event_type="vla.embodiment.v1", event_id=f"{key}/{version}", source="ingest_api", now_s=time.time()
    )
    value = record.SerializeToString() if record is not None else None
    return await publisher.send(EMBODIMENTS, value, key=key.encode(), headers=h.encode(attributes))
