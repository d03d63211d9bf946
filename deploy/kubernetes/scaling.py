"""How many GPU workers a deployment gets: the numbers of its KEDA ScaledObject, each from what its worker costs. Pure.

A batch of n takes a * n + b. By Little's law a worker that takes R requests a second, each of which is unfinished for T
seconds, has R * T unfinished ones: that is its share of the group's lag, and what KEDA is told to hold.
"""

from __future__ import annotations

from dataclasses import dataclass

#: A worker at this share of its capacity has room for robots that are not dealt evenly (ARCHITECTURE.md, Capacity).
PLANNED_LOAD = 0.7
#: Share of a request's time to live that it may wait for a device and spend on it. The rest is for the API, the gates,
#: the brokers and the tail: robots are placed by key, so some worker always has more of them than the mean.
DEVICE_SHARE = 0.25
#: Finished requests count as lag until they are committed: half the interval of runtime/processor.py on average.
MEAN_UNCOMMITTED_S = 0.25
#: Of the accepted topic, for each worker that there may be.
PARTITIONS_A_WORKER = 2
#: The HPA asks for the lag this often (`--horizontal-pod-autoscaler-sync-period`).
HPA_SYNC_S = 15


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a batch of n as per_item_s * n + base_s; `source` says who measured it, and on what."""

    per_item_s: float
    base_s: float
    source: str

    def rate(self, n: int) -> float:
        """Requests a second at full batches of n."""
        return n / (self.per_item_s * n + self.base_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling:
    """The numbers of one ScaledObject, and what they follow from."""

    deployment: str
    cost: Cost
    largest_batch: int
    ttl_s: float
    partitions: int
    min_replicas: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"{self.deployment}: {self.min_replicas} workers at least are wanted, and {self.partitions} partitions "
                f"allow {self.max_replicas}: raise accepted_partitions or lower min_replicas"
            )

    @property
    def capacity(self) -> float:
        """Requests a second of one worker at most."""
        return self.cost.rate(self.largest_batch)

    @property
    def wait_s(self) -> float:
        """How long an accepted request may wait for a device and be on it, on average."""
        return DEVICE_SHARE * self.ttl_s

    @property
    def unfinished_s(self) -> float:
        """How long it then counts as lag."""
        return self.wait_s + MEAN_UNCOMMITTED_S

    @property
    def lag_threshold(self) -> int:
        """Lag of one worker at its planned load."""
        return max(round(PLANNED_LOAD * self.capacity * self.unfinished_s), 1)

    @property
    def max_replicas(self) -> int:
        return self.partitions // PARTITIONS_A_WORKER

    @property
    def overload_s(self) -> float:
        """How long a request counts as lag at most: then it is refused as expired."""
        return self.ttl_s + MEAN_UNCOMMITTED_S
