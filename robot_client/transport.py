"""What `infer` needs of a way to the service."""

from __future__ import annotations

from typing import Protocol

from robot_client.chunk import ActionChunk
from schemas.messages import InferenceRequest


class Transport(Protocol):
    """One way to the service, used from one event loop. `exchange` is one attempt; retries are the client's."""

    async def open(self) -> None:
        """Be ready to exchange. Raises ConnectionError where the service cannot be reached at all."""
        ...

    async def exchange(self, request: InferenceRequest, timeout_s: float) -> ActionChunk:
        """Send the request and wait at most `timeout_s` for its reply.

        Raises AttemptFailed where the same request may be sent again, Refused where it must not be.
        """
        ...

    async def close(self) -> None: ...
