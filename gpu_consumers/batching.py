"""Which requests ride together and when: pure, so every decision can be replayed in a test.

Earliest deadline first, each robot's requests in their order. A batch leaves at once when the device is idle;
it waits for company only while requests come faster than batches of this size could serve them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpu_consumers.cost import ArrivalRate, CostModel

T = TypeVar("T")
#: Shorter waits than this are not worth a wake-up of the thread.
_SHORTEST_WAIT_S = 0.0002


@dataclass(frozen=True, slots=True)
class Waiting(Generic[T]):
    """A request that waits for the device. Times are in seconds of one monotonic clock."""

    #: Customer and robot: what order and superseding go by.
    robot: str
    arrived_s: float
    deadline_s: float
    #: This observation makes the robot's older waiting ones pointless.
    latest_only: bool
    item: T


@dataclass(frozen=True, slots=True)
class Dispatch(Generic[T]):
    """Run these now: 1..max requests, none expired."""

    batch: tuple[Waiting[T], ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Ask again after this time, or when something arrives."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Idle:
    """Nothing waits."""


class QueueFull(Exception):
    """The caller takes in no more than the queue holds."""


class BatchQueue(Generic[T]):
    """Requests between decoding and the device. Not thread-safe."""

    def __init__(self, *, capacity: int, batch_sizes: Sequence[int], cost: CostModel, arrivals: ArrivalRate) -> None:
        if capacity < 1 or not batch_sizes or min(batch_sizes) < 1:
            raise ValueError("capacity and batch sizes are at least 1")
        self._capacity = capacity
        self._sizes = sorted(set(batch_sizes))
        self._cost = cost
        self._arrivals = arrivals
        #: Robot -> its requests in order; a robot without any has no entry.
        self._robots: dict[str, deque[Waiting[T]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def max_batch(self) -> int:
        return self._sizes[-1]

    def limit_batch(self, size: int) -> None:
        """From now on at most `size` (at least 1) in a batch: the device has no memory for more."""
        self._sizes = [known for known in self._sizes if known <= size] or [max(size, 1)]

    def offer(self, waiting: Waiting[T]) -> list[Waiting[T]]:
        """Take a request in; returns those that it supersedes. Raises QueueFull."""
        line = self._robots.get(waiting.robot)
        superseded = list(line or ()) if waiting.latest_only else []
        if self._count - len(superseded) >= self._capacity:
            raise QueueFull(f"{self._count} requests wait already")
        self._arrivals.arrived(waiting.arrived_s)
        if superseded or line is None:
            line = self._robots[waiting.robot] = deque()
        line.append(waiting)
        self._count += 1 - len(superseded)
        return superseded

    def take_expired(self, now_s: float) -> list[Waiting[T]]:
        """Remove and return the requests whose deadline has passed."""
        expired: list[Waiting[T]] = []
        for robot, line in list(self._robots.items()):
            if any(waiting.deadline_s <= now_s for waiting in line):
                expired += [waiting for waiting in line if waiting.deadline_s <= now_s]
                self._replace(robot, deque(waiting for waiting in line if waiting.deadline_s > now_s))
        self._count -= len(expired)
        return expired

    def decide(self, now_s: float) -> Dispatch[T] | Wait | Idle:
        """What an idle device does now. Expired requests stay, for `take_expired`."""
        alive = [w for line in self._robots.values() for w in line if w.deadline_s > now_s]
        if not alive:
            return Idle()
        size = self._size_for(len(alive))
        wait_s = self._worth_waiting_s(alive, size, now_s)
        return Wait(wait_s) if wait_s > _SHORTEST_WAIT_S else Dispatch(tuple(self._take(size, now_s)))

    def _bucket(self, n: int) -> int:
        """The smallest batch size of the card that holds n; shapes are compiled for these alone."""
        return next((size for size in self._sizes if size >= n), self._sizes[-1])

    def _size_for(self, alive: int) -> int:
        """All that wait, or the largest full bucket where padding up to the next one costs more than a second batch."""
        if alive >= self.max_batch:
            return self.max_batch
        full = max((size for size in self._sizes if size <= alive), default=0)
        if not full or full == alive:
            return alive
        together = self._cost.seconds(self._bucket(alive))
        apart = self._cost.seconds(full) + self._cost.seconds(self._bucket(alive - full))
        return alive if together <= apart else full

    def _worth_waiting_s(self, alive: Sequence[Waiting[T]], size: int, now_s: float) -> float:
        """How long to wait for company; 0 where this batch already keeps up with the arrivals."""
        cost_s = self._cost.seconds(self._bucket(size))
        if size >= self.max_batch or cost_s <= 0 or size / cost_s >= self._arrivals.per_second(now_s):
            return 0.0
        oldest_s = min(waiting.arrived_s for waiting in alive)
        slack_s = min(waiting.deadline_s for waiting in alive) - now_s - cost_s
        return min(oldest_s + self._cost.base_s - now_s, slack_s)

    def _take(self, size: int, now_s: float) -> list[Waiting[T]]:
        """The `size` most urgent. A robot's line is as urgent as its most urgent request, so that order holds."""
        lines = [deque(w for w in line if w.deadline_s > now_s) for line in self._robots.values()]
        taken: list[Waiting[T]] = []
        while len(taken) < size:
            line = min((line for line in lines if line), key=_urgency)
            taken.append(line.popleft())
        chosen = set(map(id, taken))
        for robot in {waiting.robot for waiting in taken}:
            self._replace(robot, deque(w for w in self._robots[robot] if id(w) not in chosen))
        self._count -= len(taken)
        return taken

    def _replace(self, robot: str, line: deque[Waiting[T]]) -> None:
        if line:
            self._robots[robot] = line
        else:
            del self._robots[robot]


def _urgency(line: deque[Waiting[T]]) -> tuple[float, float]:
    return min(waiting.deadline_s for waiting in line), line[0].arrived_s
