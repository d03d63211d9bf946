"""What a sink asks of the place where its rows come to rest; Postgres and the lake are such places."""

from __future__ import annotations

from typing import Protocol, TypeVar

from runtime.errors import VlastreamError
from sinks.marks import Batch, Mark, Partition

RowT = TypeVar("RowT")


class Fenced(VlastreamError):
    """Somebody else has written this partition since its mark was read."""


class Skip(VlastreamError):
    """This record becomes no row, and that is right so. The message is the reason as a metric's label."""


class Store(Protocol[RowT]):
    """Where rows come to rest. Every method raises Unavailable while the server is away."""

    @property
    def server(self) -> str:
        """What is waited for while it is away: for people and metrics."""
        ...

    def ping(self) -> None: ...

    def dataset(self, topic: str) -> str:
        """Name of what the rows of a topic become, for metrics."""
        ...

    def open(self, partition: Partition) -> Mark:
        """The mark of a partition, Mark() for one that was never written."""
        ...

    def write(self, partition: Partition, batch: Batch[RowT]) -> None:
        """Write the rows and move the mark from `before` to `after`, both or neither. Raises Fenced."""
        ...
