"""A record that a route writes besides requests: acknowledged by the broker, or the caller is told."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from ingest_api.problems import Problem
from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.codes import Code

#: A caller wants to know within seconds that it is not recorded.
ACK_TIMEOUT_S = 5.0


async def record(
    publisher: PublisherPort,
    topic: str,
    message: Any,
    *,
    key: str,
    event_type: str,
    event_id: str,
    customer_id: str,
    timeout_s: float = ACK_TIMEOUT_S,
) -> Delivered:
    """Write a message and wait for the broker. Raises Problem 503 where it has not confirmed in time."""
    attributes = h.cloud_event(event_type=event_type, event_id=event_id, source="ingest_api", now_s=time.time())
    headers = h.encode({**attributes, h.CUSTOMER_ID: customer_id})
    sending = publisher.send(topic, message.SerializeToString(), key=key.encode(), headers=headers)
    try:
        return await asyncio.wait_for(sending, timeout_s)
    except TimeoutError as error:
        detail = "Kafka has not confirmed the record: send it again with the same id"
        raise Problem(Code.UNAVAILABLE, detail, retry_after_s=1.0) from error
