"""Who may come in: a bounded number of requests in flight, shared fairly among customers. No I/O.

A customer may hold at most SHARE times the slots that are free (the dynamic threshold of shared packet buffers,
Choudhury and Hahne 1998). Alone it gets 8/9 of them, so that whoever comes next finds room at once; k busy
customers settle at equal parts (within SHARE places). Nothing is reserved by name, nothing known beforehand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from ingest_api.problems import Problem, fault
from runtime.metrics import Metrics
from runtime.rates import EventRate
from schemas.codes import Code

#: Slots that a customer may hold for each one that is free.
SHARE = 8
#: Bounds of Retry-After, and what is said while no request has been served yet.
SHORTEST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0
_RATE_WINDOW_S = 2.0


class Slot:
    """A request's place, given back when the `with` block ends, or by whoever `hand_over` gave it to."""

    def __init__(self, admission: Admission, customer_id: str) -> None:
        self._admission = admission
        self._customer_id = customer_id
        self._released = False
        self._handed_over = False

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

    def hand_over(self) -> Callable[[], None]:
        """Keep the place beyond the block, as the pipeline still works on the request. Call the result at its end."""
        self._handed_over = True
        return self._release

    def _release(self) -> None:
        if not self._released:
            self._released = True
            self._admission.leave(self._customer_id)


class Admission:
    """The places of one API process. Of the event loop's thread alone."""

    def __init__(self, capacity: int, metrics: Metrics, clock: Callable[[], float] = time.monotonic) -> None:
        self._capacity = capacity
        self._metrics = metrics
        self._clock = clock
        #: Customer -> places held, at least 1; so it never holds more customers than there are places.
        self._held: dict[str, int] = {}
        self._total = 0
        self._served = EventRate(_RATE_WINDOW_S)
        self._refused = EventRate(_RATE_WINDOW_S)
        metrics.requests_in_flight.set_function(lambda: self._total)

    @property
    def in_flight(self) -> int:
        return self._total

    def held(self, customer_id: str) -> int:
        return self._held.get(customer_id, 0)

    def admit(self, customer_id: str) -> Slot:
        """A place, to be used in a `with` block. Raises Problem, with Retry-After from the measured service rate:

        429 for a customer that holds as much as the average of those inside or more, 503 for others.
        """
        own, free = self.held(customer_id), self._capacity - self._total
        customers = len(self._held) + (own == 0)
        has_its_part = own > 0 and own * customers >= self._total
        # The last place is for who has less than others, also where there are too few for SHARE to keep one back.
        if free <= 0 or own >= SHARE * free or (free == 1 and has_its_part):
            raise self._refusal(own, customers, has_its_part)
        self._held[customer_id] = own + 1
        self._total += 1
        return Slot(self, customer_id)

    def leave(self, customer_id: str) -> None:
        """Give one place back; a slot does so by itself."""
        left = self._held[customer_id] - 1
        if left:
            self._held[customer_id] = left
        else:
            del self._held[customer_id]
        self._total -= 1

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

    def _refusal(self, own: int, customers: int, has_its_part: bool) -> Problem:
        self._refused.happened(self._clock())
        if has_its_part:
            share = SHARE * self._capacity / (1 + customers * SHARE)
            self._metrics.admission_refusals.labels("customer_share").inc()
            detail = f"{own} of your requests are in work, which is your share of {self._capacity} now: send less"
            violation = fault("authorization", "customer_share", detail)
            retry_after_s = self.retry_after_s(max(own - share, 0.0) + 1)
            return Problem(Code.QUOTA, detail, violations=[violation], retry_after_s=retry_after_s)
        self._metrics.admission_refusals.labels("full").inc()
        detail = f"{self._total} requests are in work, of {self._capacity} that may be: try again later"
        return Problem(Code.OVERLOADED, detail, retry_after_s=self.retry_after_s(1.0))
