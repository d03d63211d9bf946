"""Whose turn it is on the device when more customers wait than fit: start-time fair queueing. Pure."""

from __future__ import annotations


class Turns:
    """Each request taken is one turn; whoever has had fewest comes next.

    A customer that was away comes in at the present turn: it saves none up, and owes what it took in advance.
    """

    def __init__(self) -> None:
        self._present = 0
        #: Customer -> its next turn, for those alone who are ahead of the present one.
        self._ahead: dict[str, int] = {}

    def next_of(self, customer: str) -> int:
        """The turn that this customer's next request has: the lowest goes first."""
        return self._ahead.get(customer, self._present)

    def take(self, customer: str) -> None:
        """A request of this customer goes to the device."""
        turn = self.next_of(customer)
        self._ahead[customer] = turn + 1
        if turn > self._present:
            self._present = turn
            self._ahead = {name: ahead for name, ahead in self._ahead.items() if ahead > turn}

    def forget(self) -> None:
        """Nobody waits any more: all begin anew."""
        self._ahead.clear()
