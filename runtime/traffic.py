"""How a model's robots are dealt to its deployments: the newest word of vla.traffic.v1, and the record that changes it.

A new revision of a model is a deployment. Weights move robots between the two while both run, without a restart of
anything: forward, and back. A robot stays where it is as long as the weights are unchanged (a stable hash of its id).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping

from runtime.errors import Reject
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.cards import CardSet
from schemas.codes import Code
from schemas.messages import Traffic, TrafficShare
from schemas.topics import TRAFFIC

_MAX_WHO = 200
_MAX_WHY = 500


class TrafficTable:
    """Thread-safe: a view writes, others read. A model without a record is dealt by its cards' own `traffic`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._records: dict[str, Traffic] = {}

    def update(self, key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        model = key.decode("utf-8", "replace")
        record = Traffic.FromString(value) if value is not None else None
        with self._lock:
            if record is None:
                self._records.pop(model, None)
            else:
                self._records[model] = record

    def of(self, model: str) -> Traffic | None:
        with self._lock:
            return self._records.get(model)

    def weights(self, model: str) -> Mapping[str, float] | None:
        """Deployment -> weight as the newest record has it; None where the cards decide."""
        record = self.of(model)
        return None if record is None else {share.deployment: share.weight for share in record.shares}


def traffic_record(
    model: str, weights: Mapping[str, float], cards: CardSet, *, who: str, why: str, now_s: float | None = None
) -> Traffic:
    """The record that deals a model's robots by these weights; a deployment that is not named gets none.

    Raises Reject where it would not say who or why, for a name that no card has, a weight that is none, and where
    robots of a type that the model serves would be left without a deployment.
    """
    for field, text, limit in (("by", who, _MAX_WHO), ("reason", why, _MAX_WHY)):
        if not text.strip() or len(text) > limit or not text.isprintable():
            raise _refused(field, f"say it in 1 to {limit} printable characters")
    served = cards.deployments(model)
    if not served:
        known = ", ".join(sorted({card.model for card in cards.models})) or "none"
        raise _refused("model", f"{model!r} is not served; known are: {known}")
    known_names = {card.deployment for card in served}
    for deployment, weight in weights.items():
        if deployment not in known_names:
            raise _refused(
                "deployment", f"{deployment!r} is no deployment of {model}: {', '.join(sorted(known_names))}"
            )
        if not math.isfinite(weight) or weight < 0:
            raise _refused("weight", f"{deployment}={weight}: use a number that is at least 0")
    orphans = {robot for card in served for robot in card.embodiments} - {
        robot for card in served if weights.get(card.deployment, 0) > 0 for robot in card.embodiments
    }
    if orphans:
        raise _refused("weight", f"no deployment would be left for: {', '.join(sorted(orphans))}")
    return Traffic(
        model=model,
        shares=[TrafficShare(deployment=name, weight=weight) for name, weight in weights.items()],
        who=who.strip(),
        why=why.strip(),
        at_ms=round((time.time() if now_s is None else now_s) * 1000),
    )


async def publish_traffic(publisher: PublisherPort, traffic: Traffic) -> Delivered:
    """Write the record and wait until the broker has it: every gate reads it within a second.

    Raises Retry, Unavailable or Fatal: it is then not known to hold.
    """
    attributes = h.cloud_event(
        event_type="vla.traffic.v1",
        event_id=f"{traffic.model}/{traffic.at_ms}",
        source="operator",
        now_s=traffic.at_ms / 1000,
    )
    key = traffic.model.encode()
    return await publisher.send(TRAFFIC, traffic.SerializeToString(), key=key, headers=h.encode(attributes))


def _refused(field: str, detail: str) -> Reject:
    return Reject(Code.MALFORMED, f"{field}: {detail}", field=field)
