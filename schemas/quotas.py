"""What a Kafka user may take of each broker, and what a fleet gets where nobody says otherwise.

`vlastream fleets add` sets it, and so do the KafkaUsers of deploy/kubernetes.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """What one user may take of each broker; beyond it the broker delays its answers (KIP-13, KIP-124)."""

    producer_bytes_per_s: float
    #: Percent of one network or request thread's time.
    request_percent: float


FLEET_QUOTA = Quota(producer_bytes_per_s=20_000_000, request_percent=50)
