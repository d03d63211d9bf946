"""Makes, changes, rotates and revokes keys: in Postgres, each change with its audit record in one transaction."""

from __future__ import annotations

import re
import secrets
import string
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, func, or_, select, update
from sqlalchemy.dialects.postgresql import insert

from ingest_api.key_stores import reference_of_id
from ingest_api.keys import hash_key
from runtime.audit import event
from runtime.database import Database
from runtime.errors import Reject
from runtime.outbox import enqueue
from runtime.tables import api_keys, customers
from schemas.codes import Code
from schemas.scopes import DEFAULT_SCOPES, Scope
from schemas.topics import AUDIT

_PREFIX_CHARACTERS = string.ascii_lowercase + string.digits
MAX_NAME = 100
#: Keys of one customer at once; more is a mistake in somebody's loop.
MOST_KEYS = 1000
#: For so long a rotated key may be used on at most.
LONGEST_GRACE_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Actor:
    """Who does it and from where, for the audit log. scopes: what their own key may do; None: an operator's hand."""

    who: str
    origin: str
    scopes: frozenset[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyTerms:
    """What a key may do. expires_at: None, never. rate_limit: requests a minute of this key alone; None: no limit."""

    name: str = ""
    scopes: tuple[str, ...] = DEFAULT_SCOPES
    rate_limit: int | None = None
    expires_at: datetime | None = None


class KeyAdmin:
    """customer_id of every method: whose keys it may touch; None: anybody's.

    forget: told the references of a key that shall no longer be honoured. Every method blocks, and raises Unavailable
    while Postgres is away, Reject for what cannot be.
    """

    def __init__(self, database: Database, forget: Callable[[Sequence[str]], None] = lambda references: None) -> None:
        self._database = database
        self._forget = forget

    def create(self, actor: Actor, customer_id: str, terms: KeyTerms) -> tuple[str, Row[Any]]:
        """The key, which is kept nowhere, and its row."""
        check_terms(actor, terms)
        with self._database.begin() as connection:
            count = select(func.count()).select_from(api_keys)
            count = count.where(api_keys.c.customer_id == customer_id, api_keys.c.is_active)
            if connection.execute(count).scalar_one() >= MOST_KEYS:
                raise Reject(Code.INVALID_REQUEST, f"this customer has {MOST_KEYS} keys: revoke some", field="name")
            key, row = _insert(connection, customer_id, terms)
            _audit(connection, actor, "key.create", row, name=terms.name, scopes=" ".join(terms.scopes))
        return key, row

    def all(self, customer_id: str | None) -> Sequence[Row[Any]]:
        """Rows of keys with `email` and `tier`, newest first."""
        query = (
            select(api_keys, customers.c.email, customers.c.tier)
            .join(customers, customers.c.id == api_keys.c.customer_id)
            .order_by(api_keys.c.created_at.desc())
        )
        if customer_id is not None:
            query = query.where(api_keys.c.customer_id == customer_id)
        with self._database.begin() as connection:
            return connection.execute(query).all()

    def change(self, actor: Actor, customer_id: str | None, which: str, changes: dict[str, Any]) -> Row[Any]:
        """changes: new values of fields of KeyTerms. which: id or prefix."""
        with self._database.begin() as connection:
            old = _held(connection, customer_id, which)
            terms = {name: getattr(old, name) for name in ("name", "scopes", "rate_limit", "expires_at")}
            check_terms(actor, KeyTerms(**{**terms, "scopes": tuple(terms["scopes"]), **changes}), old)
            if "scopes" in changes:
                changes = {**changes, "scopes": list(changes["scopes"])}
            statement = update(api_keys).where(api_keys.c.id == old.id).values(**changes).returning(api_keys)
            row = connection.execute(statement).one() if changes else old
            _audit(connection, actor, "key.change", row, **changes)
        self._forgotten(row)
        return row

    def rotate(self, actor: Actor, customer_id: str | None, which: str, grace_s: float) -> tuple[str, Row[Any]]:
        """A new key with the same terms. The old one may be used for `grace_s` more."""
        if not 0 <= grace_s <= LONGEST_GRACE_S:
            detail = f"the old key may be used on for 0 to {LONGEST_GRACE_S} s"
            raise Reject(Code.INVALID_REQUEST, detail, field="grace_s")
        with self._database.begin() as connection:
            old = _held(connection, customer_id, which)
            terms = KeyTerms(name=old.name, scopes=tuple(old.scopes), rate_limit=old.rate_limit)
            check_terms(actor, terms, old)
            key, row = _insert(connection, old.customer_id, terms)
            end = datetime.now(UTC) + timedelta(seconds=grace_s)
            ended: dict[str, Any] = {"is_active": False}
            if grace_s > 0:
                ended = {"expires_at": min(end, old.expires_at) if old.expires_at is not None else end}
            connection.execute(update(api_keys).where(api_keys.c.id == old.id).values(**ended))
            _audit(connection, actor, "key.rotate", old, new_key=row.id, grace_s=grace_s)
        self._forgotten(old)
        return key, row

    def revoke(self, actor: Actor, customer_id: str | None, which: str) -> list[Row[Any]]:
        """Every active key with this id or prefix. API processes forget it within key_cache_ttl_s."""
        with self._database.begin() as connection:
            statement = update(api_keys).where(_named(customer_id, which), api_keys.c.is_active)
            rows = list(connection.execute(statement.values(is_active=False).returning(api_keys)).all())
            for row in rows:
                _audit(connection, actor, "key.revoke", row)
        for row in rows:
            self._forgotten(row)
        return rows

    def _forgotten(self, row: Row[Any]) -> None:
        self._forget([row.key_hash, reference_of_id(str(row.id))])


def check_terms(actor: Actor, terms: KeyTerms, held: Row[Any] | None = None) -> None:
    """Raises Reject. Nobody makes a key that may more than their own, nor changes one."""
    known = set(Scope)
    if unknown := sorted(set(terms.scopes) - known):
        detail = f"{unknown[0]!r} is no scope; there are: {', '.join(sorted(known))}"
        raise Reject(Code.INVALID_REQUEST, detail, field="scopes")
    if not terms.scopes:
        raise Reject(Code.INVALID_REQUEST, "a key without a scope opens nothing: name one", field="scopes")
    beyond = set(terms.scopes) | set(held.scopes if held is not None else ())
    if actor.scopes is not None and (more := sorted(beyond - actor.scopes)):
        raise Reject(Code.FORBIDDEN, f"your own key lacks the scope {more[0]}, so it cannot give it", field="scopes")
    if len(terms.name) > MAX_NAME or (terms.name and not terms.name.isprintable()):
        raise Reject(Code.INVALID_REQUEST, f"use at most {MAX_NAME} printable characters", field="name")
    if terms.rate_limit is not None and not 0 < terms.rate_limit < 2**31:
        raise Reject(Code.INVALID_REQUEST, "use a number from 1 on, or leave it out", field="rate_limit")
    if terms.expires_at is not None and held is None and terms.expires_at <= datetime.now(UTC):
        raise Reject(Code.INVALID_REQUEST, "this time has passed: a key would be of no use", field="expires_at")


def _insert(connection: Connection, customer_id: str, terms: KeyTerms) -> tuple[str, Row[Any]]:
    prefix = "".join(secrets.choice(_PREFIX_CHARACTERS) for _ in range(8))
    key = f"vla_{prefix}_{secrets.token_urlsafe(32)}"
    values = {
        "customer_id": customer_id,
        "prefix": f"vla_{prefix}",
        "key_hash": hash_key(key),
        "name": terms.name,
        "scopes": list(terms.scopes),
        "rate_limit": terms.rate_limit,
        "expires_at": terms.expires_at,
    }
    return key, connection.execute(insert(api_keys).values(**values).returning(api_keys)).one()


def _held(connection: Connection, customer_id: str | None, which: str) -> Row[Any]:
    """The one active key that is meant, locked. Raises Reject."""
    query = select(api_keys).where(_named(customer_id, which), api_keys.c.is_active).with_for_update()
    rows = connection.execute(query).all()
    if not rows:
        raise Reject(Code.NOT_FOUND, "no active key has this id or prefix: list the keys", field="key")
    if len(rows) > 1:
        raise Reject(Code.INVALID_REQUEST, "several keys have this prefix: name the key by its id", field="key")
    return rows[0]


def _named(customer_id: str | None, which: str) -> Any:
    """Keys by id, or by prefix with or without `vla_` before it."""
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", which):
        wanted: Any = api_keys.c.id == uuid.UUID(which)
    elif "\x00" in which:
        wanted = api_keys.c.id.is_(None)
    else:
        wanted = or_(api_keys.c.prefix == which, api_keys.c.prefix == f"vla_{which}")
    return wanted if customer_id is None else wanted & (api_keys.c.customer_id == customer_id)


def _audit(connection: Connection, actor: Actor, action: str, row: Row[Any], **details: object) -> None:
    told = event(
        action,
        actor=actor.who,
        origin=actor.origin,
        target=f"key:{row.id}",
        customer_id=row.customer_id,
        details={"prefix": row.prefix, **details},
    )
    enqueue(connection, AUDIT, row.customer_id, told, "vla.audit.v1")
