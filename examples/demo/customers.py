"""The customers of the demo: the owner and the direct producers allow everything, a guest has never said anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from examples.demo.stack_access import FLEET, Stack
from ingest_api.customer_admin import customer_id_of
from ingest_api.tenancy_commands import create_key
from runtime.consent_commands import set_consent

OWNER_EMAIL = "demo@example.org"
GUEST_EMAIL = "guest@example.org"


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """`api_key` is empty for a fleet, which produces to Kafka itself."""

    name: str
    customer_id: str
    api_key: str
    #: Allows everything to be kept and trained on; who does not has said nothing, which is a no.
    consents: bool


@dataclass(frozen=True, slots=True)
class Customers:
    owner: Customer
    fleet: Customer
    guest: Customer

    def __iter__(self) -> Iterator[Customer]:
        return iter((self.owner, self.fleet, self.guest))


def introduce(stack: Stack, say: Callable[[str], None]) -> Customers:
    """The customers, once the consent of those who give it is recorded. Raises Unavailable."""
    settings = stack.settings()
    customers = Customers(
        Customer(name="owner", customer_id=customer_id_of(OWNER_EMAIL), api_key=stack.api_key, consents=True),
        Customer(name="fleet", customer_id=FLEET, api_key="", consents=True),
        Customer(
            name="guest",
            customer_id=customer_id_of(GUEST_EMAIL),
            api_key=create_key(settings, GUEST_EMAIL, "pro"),
            consents=False,
        ),
    )
    for customer in customers:
        if customer.consents:
            set_consent(
                settings, customer.customer_id, tier="full", expires=None, anonymization=None, by="demo", say=say
            )
    return customers
