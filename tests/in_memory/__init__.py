"""A Kafka in memory, offsets included: for tests of stages, never for running them.

It keeps to the one contract in tests/contract/test_broker.py, which is run against a real broker as well:
placement by murmur2, contiguous offsets, groups with committed offsets, and the incremental rebalance of
`cooperative-sticky`, whose callbacks come out of `poll`.
"""

from __future__ import annotations

from tests.in_memory.broker import InMemoryBroker
from tests.in_memory.consumer import InMemoryConsumer
from tests.in_memory.publisher import InMemoryPublisher

__all__ = ["InMemoryBroker", "InMemoryConsumer", "InMemoryPublisher"]
