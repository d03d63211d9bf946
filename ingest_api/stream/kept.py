"""Requests of dropped sessions and their answers, for those who come back for them. No I/O.

An answer is kept for a while also when it was sent, since nobody knows whether it arrived. What is evicted or was
never here is no loss: the log gives the first outcome to whoever sends the request again.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from ingest_api.exchange import Case
from ingest_api.replies import Reply
from runtime.errors import VlastreamError

RESUME_WINDOW_S = 60.0
_MOST_OF_ONE_CUSTOMER = 512
_MOST_BYTES = 8 * 1024 * 1024


class Owner(Protocol):
    """A session that waits for an answer."""

    def settled(self, asked: Asked) -> None: ...

    def taken_over(self, asked: Asked) -> None:
        """Another session waits for it from now on."""
        ...


@dataclass(slots=True, eq=False)
class Asked:
    """A request on its way, or answered. `owner` gets the answer; None: nobody is there for it now."""

    customer_id: str
    case: Case
    #: Asked as protobuf, so answered as such.
    binary: bool
    owner: Owner | None
    reply: Reply | None = None
    failure: VlastreamError | None = None
    settled_at: float = 0.0

    @property
    def identity(self) -> tuple[str, str]:
        return self.customer_id, self.case.request_id


class KeptAnswers:
    """By customer and request id; a later request with the same id takes the place of an earlier one."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        window_s: float = RESUME_WINDOW_S,
        most_bytes: int = _MOST_BYTES,
        most_of_one_customer: int = _MOST_OF_ONE_CUSTOMER,
    ) -> None:
        self._clock = clock
        self.window_s = window_s
        self._most_bytes = most_bytes
        self._most_of_one = most_of_one_customer
        self._pending: dict[tuple[str, str], Asked] = {}
        #: In the order of their answers.
        self._answered: OrderedDict[tuple[str, str], Asked] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._bytes

    def open(self, asked: Asked) -> None:
        self._pending[asked.identity] = asked

    def settle(self, asked: Asked) -> None:
        """It has its reply, or failed: only replies are worth keeping."""
        if self._pending.get(asked.identity) is asked:
            del self._pending[asked.identity]
            if asked.reply is not None:
                self._keep(asked)

    def pending(self, customer_id: str, request_id: str) -> Asked | None:
        return self._pending.get((customer_id, request_id))

    def answered(self, customer_id: str, request_id: str) -> Asked | None:
        self._forget_old()
        return self._answered.get((customer_id, request_id))

    def _keep(self, asked: Asked) -> None:
        self._forget_old()
        if asked.identity in self._answered:
            self._drop(asked.identity)
        asked.settled_at = self._clock()
        self._answered[asked.identity] = asked
        self._counts[asked.customer_id] += 1
        self._bytes += _size(asked)
        if self._counts[asked.customer_id] > self._most_of_one:
            self._drop(next(key for key in self._answered if key[0] == asked.customer_id))
        while self._bytes > self._most_bytes:
            self._drop(next(iter(self._answered)))

    def _forget_old(self) -> None:
        limit = self._clock() - self.window_s
        while self._answered:
            key, oldest = next(iter(self._answered.items()))
            if oldest.settled_at > limit:
                return
            self._drop(key)

    def _drop(self, key: tuple[str, str]) -> None:
        asked = self._answered.pop(key)
        self._bytes -= _size(asked)
        self._counts[asked.customer_id] -= 1
        if not self._counts[asked.customer_id]:
            del self._counts[asked.customer_id]


def _size(asked: Asked) -> int:
    return len(asked.reply.value) if asked.reply is not None else 0
