"""Notices what looks like somebody else's hand on a key. Pure: time and what happened come in, events go out.

Three things are told: keys that nobody has, many from one address; a key that was revoked or has expired, still in use;
a key that comes from an address it never came from before, once it is known where it is at home.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

from ingest_api.key_stores import KeyRecord
from runtime.audit import NOBODY, event
from schemas.messages import AuditEvent

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")

#: Unknown keys from one address within a minute from which on it is told.
BURST = 10
_BURST_WINDOW_S = 60.0
#: The same thing of the same key or address is told again only after so long.
_QUIET_S = 600.0
#: An address is new to a key only after it was used for so long from others: a fresh key has no home yet.
SETTLED_S = 3600.0
#: A key that is used from more addresses than this is at home everywhere (a fleet behind changing addresses).
_MOST_ADDRESSES = 16
#: Keys, addresses and told things that are remembered; the oldest are forgotten.
_MOST = 10_000


class KeyWatch:
    """Of one event loop. `report` must not block."""

    def __init__(self, report: Callable[[AuditEvent], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._told: OrderedDict[tuple[str, str], float] = OrderedDict()
        #: Address -> start of its window, keys in it.
        self._guesses: OrderedDict[str, tuple[float, int]] = OrderedDict()
        #: Key -> when it was first seen here, addresses.
        self._homes: OrderedDict[str, tuple[float, set[str]]] = OrderedDict()

    def unknown(self, origin: str) -> None:
        """A key of the right form that nobody has."""
        now_s = self._clock()
        start_s, count = self._guesses.get(origin, (now_s, 0))
        if now_s - start_s > _BURST_WINDOW_S:
            start_s, count = now_s, 0
        _keep(self._guesses, origin, (start_s, count + 1))
        if count + 1 >= BURST:
            self._tell("key.guessing", origin, origin, details={"keys": count + 1, "within_s": round(now_s - start_s)})

    def revoked(self, record: KeyRecord, origin: str) -> None:
        self._tell("key.use_revoked", record.key_id, origin, record)

    def expired(self, record: KeyRecord, origin: str) -> None:
        self._tell("key.use_expired", record.key_id, origin, record)

    def used(self, record: KeyRecord, origin: str) -> None:
        """A key or token was good."""
        home = self._homes.get(record.key_id)
        if home is None:
            _keep(self._homes, record.key_id, (self._clock(), {origin}))
            return
        since_s, addresses = home
        if origin in addresses or len(addresses) >= _MOST_ADDRESSES:
            return
        addresses.add(origin)
        if self._clock() - since_s >= SETTLED_S:
            self._tell("key.new_address", f"{record.key_id} {origin}", origin, record)

    def _tell(
        self,
        action: str,
        about: str,
        origin: str,
        record: KeyRecord | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        now_s = self._clock()
        last_s = self._told.get((action, about))
        if last_s is not None and now_s - last_s < _QUIET_S:
            return
        _keep(self._told, (action, about), now_s)
        self._report(
            event(
                action,
                actor=record.actor if record is not None else NOBODY,
                origin=origin,
                target=f"key:{record.key_id}" if record is not None else f"address:{origin}",
                customer_id=record.customer_id if record is not None else "",
                details=details,
            )
        )


def _keep(entries: OrderedDict[KeyT, ValueT], key: KeyT, value: ValueT) -> None:
    entries[key] = value
    entries.move_to_end(key)
    while len(entries) > _MOST:
        entries.popitem(last=False)
