"""Whose rows are whose: the lake has hashes where Postgres has ids."""

from __future__ import annotations

from sqlalchemy import Connection, select

from runtime.anonymize import hashed
from runtime.tables import customers, inference_log


def customers_by_hash(connection: Connection, salt: str, fleets: tuple[str, ...]) -> dict[str, str]:
    """Hash, and id itself, -> id, of every customer that has a key, a fleet, or a row."""
    known = set(connection.execute(select(customers.c.id)).scalars())
    known |= set(connection.execute(select(inference_log.c.customer_id).distinct()).scalars())
    known |= set(fleets)
    return {**{customer: customer for customer in known}, **{hashed(customer, salt): customer for customer in known}}
