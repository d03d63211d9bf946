"""Makes and changes customers: in Postgres, each change with its records for the audit log and for the gates in one
transaction."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Row, select, update
from sqlalchemy.dialects.postgresql import insert

from ingest_api.key_admin import Actor
from ingest_api.key_stores import LIMIT_COLUMNS, own_limits
from runtime.audit import event
from runtime.database import Database
from runtime.errors import Fatal, Reject
from runtime.outbox import enqueue
from runtime.tables import customers
from schemas.codes import Code
from schemas.ids import customer_id_of_email
from schemas.messages import Customer
from schemas.tiers import FREE, TIERS, limits_of
from schemas.topics import AUDIT, CUSTOMERS

#: Columns of 4 bytes.
_LARGEST = {"monthly_quota": 2**63 - 1}
_MOST_CUSTOMERS = 10_000


def customer_id_of(email: str) -> str:
    """One address is one customer, however it is capitalised. Raises Fatal for what is no address."""
    return customer_id_of_email(normalised(email))


def normalised(email: str) -> str:
    address = email.strip().lower()
    if not re.fullmatch(r"[^@\s]{1,64}@[^@\s]{1,189}", address) or not address.isprintable():
        raise Fatal(f"{email[:80]!r} is not an e-mail address")
    return address


class CustomerAdmin:
    """Every method blocks, and raises Unavailable while Postgres is away, Reject for what cannot be."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ensure(self, actor: Actor, email: str, tier: str | None) -> Row[Any]:
        """The customer with this address, made at first; a tier that is given is theirs from now on."""
        return self._ensure(actor, customer_id_of(email), normalised(email), tier)

    def ensure_fleet(self, actor: Actor, fleet: str) -> Row[Any]:
        """The customer that a fleet is, so that it can have a tier and limits. Nobody reads its address (RFC 2606)."""
        return self._ensure(actor, fleet, f"{fleet}@fleet.invalid", None)

    def _ensure(self, actor: Actor, customer_id: str, email: str, tier: str | None) -> Row[Any]:
        with self._database.begin() as connection:
            new = insert(customers).values(id=customer_id, email=email, tier=tier or FREE).on_conflict_do_nothing()
            row = connection.execute(new.returning(customers)).one_or_none()
            if row is not None:
                self._tell(connection, actor, "customer.create", row, tier=row.tier)
                return row
            row = _held(connection, customer_id)
            if tier is None or tier == row.tier:
                return row
            return self._set(connection, actor, "customer.tier", row, {"tier": tier}, tier=tier, before=row.tier)

    def all(self) -> Sequence[Row[Any]]:
        with self._database.begin() as connection:
            query = select(customers).order_by(customers.c.created_at.desc()).limit(_MOST_CUSTOMERS)
            return connection.execute(query).all()

    def one(self, customer_id: str) -> Row[Any]:
        with self._database.begin() as connection:
            return _held(connection, customer_id, lock=False)

    def set_tier(self, actor: Actor, customer_id: str, tier: str) -> Row[Any]:
        if tier not in TIERS:
            raise Reject(Code.INVALID_REQUEST, f"there are the tiers {', '.join(TIERS)}", field="tier")
        with self._database.begin() as connection:
            row = _held(connection, customer_id)
            return self._set(connection, actor, "customer.tier", row, {"tier": tier}, tier=tier, before=row.tier)

    def set_limits(self, actor: Actor, customer_id: str, own: dict[str, int | None]) -> Row[Any]:
        """own: limit of schemas/tiers.py -> number; None: that of the tier again. What is not named stays."""
        for name, value in own.items():
            if value is not None and not 0 < value <= _LARGEST.get(name, 2**31 - 1):
                raise Reject(
                    Code.INVALID_REQUEST, f"{name}: use a number from 1 on, or null for the tier's", field=name
                )
        values = {LIMIT_COLUMNS[name]: value for name, value in own.items()}
        with self._database.begin() as connection:
            row = _held(connection, customer_id)
            return self._set(connection, actor, "customer.limits", row, values, **own) if values else row

    def set_active(self, actor: Actor, customer_id: str, active: bool) -> Row[Any]:
        with self._database.begin() as connection:
            row = _held(connection, customer_id)
            action = "customer.resume" if active else "customer.suspend"
            return self._set(connection, actor, action, row, {"is_active": active})

    def _set(
        self,
        connection: Connection,
        actor: Actor,
        action: str,
        row: Row[Any],
        values: dict[str, Any],
        **details: object,
    ) -> Row[Any]:
        statement = update(customers).where(customers.c.id == row.id).values(**values).returning(customers)
        changed = connection.execute(statement).one()
        self._tell(connection, actor, action, changed, **details)
        return changed

    def _tell(self, connection: Connection, actor: Actor, action: str, row: Row[Any], **details: object) -> None:
        told = event(
            action,
            actor=actor.who,
            origin=actor.origin,
            target=f"customer:{row.id}",
            customer_id=row.id,
            details=details,
        )
        enqueue(connection, AUDIT, row.id, told, "vla.audit.v1")
        enqueue(connection, CUSTOMERS, row.id, record_of(row), "vla.customers.v1")


def record_of(row: Row[Any]) -> Customer:
    """What gates get to know of a row."""
    record = Customer(customer_id=row.id, tier=row.tier, active=row.is_active, at_ms=round(time.time() * 1000))
    for name, value in own_limits(row).items():
        if value is not None:
            setattr(record, name, value)
    return record


def described(row: Row[Any]) -> dict[str, Any]:
    """A customer as the API shows one: the limits that hold, and which of them are their own."""
    own = own_limits(row)
    limits = limits_of(row.tier, own)
    return {
        "id": row.id,
        "email": row.email,
        "tier": row.tier,
        "is_active": row.is_active,
        "created_at": row.created_at,
        "limits": {name: getattr(limits, name) for name in LIMIT_COLUMNS},
        "own_limits": own,
    }


def _held(connection: Connection, customer_id: str, *, lock: bool = True) -> Row[Any]:
    """Raises Reject."""
    query = select(customers).where(customers.c.id == customer_id)
    row = (
        None if "\x00" in customer_id else connection.execute(query.with_for_update() if lock else query).one_or_none()
    )
    if row is None:
        raise Reject(Code.NOT_FOUND, "no customer has this id: list them", field="customer_id")
    return row
