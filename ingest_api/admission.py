"""Who may come in: a bounded number of requests and of their bytes, shared fairly among customers. No I/O.

A customer may hold at most SHARE times what is free (the dynamic threshold of shared packet buffers, Choudhury
and Hahne 1998). Alone it gets 8/9 of it, so that whoever comes next finds room at once; k busy customers settle
at equal parts (within SHARE places). Nothing is reserved by name, nothing known beforehand.

A place is held from admission to the answer. Bytes are held for as long as this process keeps them: a body while
it comes in, then the record made of it until the log has it. So a slow network or a slow broker fills the bytes
before the places, and what waits for its answer costs next to no memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from ingest_api.problems import Problem, fault
from runtime.metrics import Metrics
from runtime.rates import EventRate
from schemas.codes import Code

#: Places that a customer may hold for each one that is free; and bytes.
SHARE = 8
#: Bounds of Retry-After, and what is said while no request has been served yet.
SHORTEST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
_RATE_WINDOW_S = 2.0


class Slot:
    """A request's place, given back when the `with` block ends, or by whoever `hand_over` gave it to.

    Its bytes are given back with it, unless `record_sent` was called: then by `record_settled`.
    """

    def __init__(self, admission: Admission, customer_id: str, size_bytes: int) -> None:
        self._admission = admission
        self._customer_id = customer_id
        self._size_bytes = size_bytes
        self._released = False
        self._handed_over = False
        self._sent = False

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._handed_over:
            self._release()

    def served(self) -> None:
        """The pipeline has answered: this is what the service rate is measured by."""
        self._admission.count_served()

    def record_sent(self, size_bytes: int) -> None:
        """The body is gone; the producer holds a record of so many bytes, until `record_settled`."""
        self._sent = True
        self._hold(size_bytes)

    def record_settled(self) -> None:
        """The log has the record, or never will: its bytes are free."""
        self._hold(0)

    def hand_over(self) -> Callable[[], None]:
        """Keep the place beyond the block, as the pipeline still works on the request. Call the result at its end."""
        self._handed_over = True
        return self._release

    def _hold(self, size_bytes: int) -> None:
        self._admission.resize(self._customer_id, size_bytes - self._size_bytes)
        self._size_bytes = size_bytes

    def _release(self) -> None:
        if not self._released:
            self._released = True
            if not self._sent:
                self._hold(0)
            self._admission.leave(self._customer_id)


@dataclass(slots=True)
class _Part:
    """What a customer holds."""

    places: int = 0
    size_bytes: int = 0


class Admission:
    """The places of one API process. Of the event loop's thread alone.

    capacity: requests in work at once. capacity_bytes: bytes of bodies and records held at once; at least twice
    the largest body, as one alone may take 8/9 of it.
    """

    def __init__(
        self, capacity: int, capacity_bytes: int, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._metrics = metrics
        self._clock = clock
        #: Those who hold something: so never more customers than there are places and unsettled records.
        self._parts: dict[str, _Part] = {}
        self._total = _Part()
        self._served = EventRate(_RATE_WINDOW_S)
        self._refused = EventRate(_RATE_WINDOW_S)
        metrics.requests_in_flight.set_function(lambda: self._total.places)
        metrics.request_bytes_held.set_function(lambda: self._total.size_bytes)

    @property
    def in_flight(self) -> int:
        return self._total.places

    @property
    def held_bytes(self) -> int:
        return self._total.size_bytes

    def held(self, customer_id: str) -> int:
        return self._parts.get(customer_id, _Part()).places

    def admit(self, customer_id: str, size_bytes: int = 0) -> Slot:
        """A place and room for a body, to be used in a `with` block. Raises Problem, with Retry-After from the
        measured service rate:

        429 for a customer that holds as much as the average of those inside or more, 503 for others.
        """
        own, total = self._parts.get(customer_id, _Part()), self._total
        customers = len(self._parts) + (customer_id not in self._parts)
        free = self._capacity - total.places
        has_its_part = own.places > 0 and own.places * customers >= total.places
        # The last place is for who has less than others, also where there are too few for SHARE to keep one back.
        if free <= 0 or own.places >= SHARE * free or (free == 1 and has_its_part):
            raise self._no_place(own, customers, has_its_part)
        free_bytes = self._capacity_bytes - total.size_bytes - size_bytes
        if free_bytes < 0 or own.size_bytes + size_bytes > SHARE * free_bytes:
            raise self._no_room(own, own.size_bytes > 0 and own.size_bytes * customers >= total.size_bytes)
        self._parts[customer_id] = own
        own.places += 1
        total.places += 1
        self.resize(customer_id, size_bytes)
        return Slot(self, customer_id, size_bytes)

    def leave(self, customer_id: str) -> None:
        """Give one place back; a slot does so by itself."""
        self._parts[customer_id].places -= 1
        self._total.places -= 1
        self._forget_if_gone(customer_id)

    def resize(self, customer_id: str, more_bytes: int) -> None:
        """Hold more bytes, or fewer; a slot does so by itself."""
        self._parts[customer_id].size_bytes += more_bytes
        self._total.size_bytes += more_bytes
        self._forget_if_gone(customer_id)

    def count_served(self) -> None:
        self._served.happened(self._clock())

    def retry_after_s(self, excess: float) -> float:
        """When a place will be free for a request that `excess` others must leave before.

        Those who were told lately to come again are ahead of it, too: so they come back no faster than they can
        be served, however many they are.
        """
        now = self._clock()
        rate = self._served.per_second(now)
        if rate <= 0:
            return SHORTEST_RETRY_S
        ahead = excess + self._refused.per_second(now)
        return min(max(ahead / rate, SHORTEST_RETRY_S), LONGEST_RETRY_S)

    def _forget_if_gone(self, customer_id: str) -> None:
        if self._parts[customer_id] == _Part():
            del self._parts[customer_id]

    def _no_place(self, own: _Part, customers: int, has_its_part: bool) -> Problem:
        if has_its_part:
            share = SHARE * self._capacity / (1 + customers * SHARE)
            detail = (
                f"{own.places} of your requests are in work, which is your share of {self._capacity} now: send less"
            )
            return self._refusal("customer_share", detail, excess=max(own.places - share, 0.0) + 1)
        detail = f"{self._total.places} requests are in work, of {self._capacity} that may be: try again later"
        return self._refusal("full", detail)

    def _no_room(self, own: _Part, has_its_part: bool) -> Problem:
        room = f"of {self._capacity_bytes} bytes that may wait to be recorded"
        if has_its_part:
            detail = f"{own.size_bytes} {room} are yours, which is your share now: send less, or smaller images"
            return self._refusal("customer_share_bytes", detail)
        return self._refusal("full_bytes", f"{self._total.size_bytes} {room} are taken: try again later")

    def _refusal(self, reason: str, detail: str, excess: float = 1.0) -> Problem:
        """429 where it is the customer's own share that is used up, 503 where it is the whole."""
        self._refused.happened(self._clock())
        self._metrics.admission_refusals.labels(reason).inc()
        code, field = (Code.QUOTA, "authorization") if reason.startswith("customer") else (Code.OVERLOADED, "system")
        violation = fault(field, reason, detail)
        return Problem(code, detail, violations=[violation], retry_after_s=self.retry_after_s(excess))
