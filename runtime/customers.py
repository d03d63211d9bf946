"""What gates know of customers: the newest word of vla.customers.v1 on each, and the record that changes it."""

from __future__ import annotations

import threading

from schemas.messages import Customer
from schemas.tiers import UNLIMITED, CustomerLimits, limits_of_record


class CustomerList:
    """Thread-safe: a view writes, others read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._limits: dict[str, CustomerLimits] = {}
        self._inactive: set[str] = set()

    def update(self, key: bytes, value: bytes | None, appended_at_ms: int) -> None:
        customer_id = key.decode("utf-8", "replace")
        customer = Customer.FromString(value) if value is not None else None
        with self._lock:
            self._inactive.discard(customer_id)
            if customer is None:
                self._limits.pop(customer_id, None)
                return
            self._limits[customer_id] = limits_of_record(customer)
            if not customer.active:
                self._inactive.add(customer_id)

    def limits(self, customer_id: str) -> CustomerLimits:
        """Of whoever has no record: none, as of a fleet that an operator listed and said nothing else about."""
        with self._lock:
            return self._limits.get(customer_id, UNLIMITED)

    def is_active(self, customer_id: str) -> bool:
        with self._lock:
            return customer_id not in self._inactive
