"""What each tier of customers may use. Pure; gates and API processes go by the same table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from schemas.messages import Customer

FREE, PRO, ENTERPRISE = "free", "pro", "enterprise"


@dataclass(frozen=True, slots=True, kw_only=True)
class CustomerLimits:
    """None: no limit."""

    #: Of a minute of the UTC clock.
    requests_per_minute: int | None
    #: Of a UTC day.
    requests_per_day: int | None
    #: Requests of a calendar month, UTC.
    monthly_quota: int | None
    #: Distinct robots of a UTC day.
    max_robots: int | None
    #: Of a REST body, and of a record on a fleet's topic.
    max_payload_bytes: int | None


UNLIMITED = CustomerLimits(
    requests_per_minute=None, requests_per_day=None, monthly_quota=None, max_robots=None, max_payload_bytes=None
)

#: The declared table. A customer's own numbers (`vlastream customers limits`) go before those of their tier.
TIERS: dict[str, CustomerLimits] = {
    # Two robots that ask once a second, for an hour a day.
    FREE: CustomerLimits(
        requests_per_minute=120,
        requests_per_day=7_200,
        monthly_quota=100_000,
        max_robots=2,
        max_payload_bytes=256 * 1024,
    ),
    # A hundred robots that ask five times a second, for eight hours a day.
    PRO: CustomerLimits(
        requests_per_minute=30_000,
        requests_per_day=15_000_000,
        monthly_quota=300_000_000,
        max_robots=100,
        max_payload_bytes=None,
    ),
    # What a contract says, by numbers of their own.
    ENTERPRISE: UNLIMITED,
}

#: Names of the limits, as columns, fields of messages and options are named.
LIMITS = tuple(field.name for field in fields(CustomerLimits))


def limits_of(tier: str, own: Mapping[str, int | None]) -> CustomerLimits:
    """The limits of a customer: their own where there is one, else the tier's. An unknown tier is the least."""
    base = TIERS.get(tier, TIERS[FREE])
    return replace(base, **{name: value for name, value in own.items() if value is not None})


def limits_of_record(customer: Customer) -> CustomerLimits:
    """The same of a record of vla.customers.v1."""
    own = {field.name: value for field, value in customer.ListFields() if field.name in LIMITS}
    return limits_of(customer.tier, own)
