"""What sinks stand on besides their servers: consent that a test sets, and decoders that go by it."""

from __future__ import annotations

from typing import Any

from runtime.consent import ConsentList, Level
from schemas.messages import Consent
from sinks import parquet, postgres
from sinks.protection import Protection
from tests.cards import cards

SALT = "a salt of the tests"


def consents(level: Level = "none", **said: dict[str, Any]) -> ConsentList:
    """customer=fields of its Consent; who is not named allows everything."""
    found = ConsentList("full", level)
    for customer, fields in said.items():
        found.update(customer.encode(), Consent(customer_id=customer, **fields).SerializeToString(), 0)
    return found


def protection(level: Level = "none") -> Protection:
    return Protection(consents(level), SALT)


def postgres_decoder(allowed: ConsentList | None = None) -> postgres.Decoder:
    return postgres.Decoder(
        consents=allowed or consents(), cards=cards(), fleet_of={"vla.episodes.north.v1": "north"}, min_safety_score=0.7
    )


def parquet_decoder(deployments: dict[str, str], allowed: ConsentList | None = None) -> parquet.Decoder:
    fleet_of = {"vla.episodes.north.v1": "north"}
    return parquet.Decoder(deployments=deployments, fleet_of=fleet_of, consents=allowed or consents())
