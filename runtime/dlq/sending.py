"""Sends the record of one letter again, and says where it lies now or why it does not."""

from __future__ import annotations

from runtime.dlq.letters import Letter
from runtime.dlq.replay import Cluster, Unfit, again
from runtime.errors import Fatal
from runtime.publisher import PublisherPort
from schemas.headers import Source


async def send_again(letter: Letter, cluster: Cluster, publisher: PublisherPort) -> Source | Unfit:
    """Returns once the broker has the record. Raises Unavailable where the broker went away on the way."""
    record = again(letter, cluster)
    if isinstance(record, Unfit):
        return Unfit(f"cannot be sent again: {record.why}")
    try:
        where = await publisher.send(
            record.topic, record.value, key=record.key, headers=record.headers, partition=record.partition
        )
    except Fatal as error:
        return Unfit(f"was not taken: {error}")
    return Source(where.topic, where.partition, where.offset)
