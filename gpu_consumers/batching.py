"""Which requests ride together and when: pure, so every decision can be replayed in a test.

Customers take turns where not all fit; among a customer's own it is earliest deadline first, each robot's
requests in their order. A batch leaves at once when the device is idle; it waits for company only while requests
come faster than batches of this size could serve them, or where robots that were just served are about to ask
again and more is served a second with them. What cannot be ready in time is not begun.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gpu_consumers.cost import CostModel
from gpu_consumers.fairness import Turns
from gpu_consumers.returns import Returns
from gpu_consumers.sizing import bucket, size_in_time, usual_size
from runtime.rates import EventRate

T = TypeVar("T")
#: Shorter waits than this are not worth a wake-up of the thread.
_SHORTEST_WAIT_S = 0.0002
#: How long after a batch the cost model is trusted to refuse by. Then the next batch is run whatever it says, so
#: that a device which was slow once is found out to be quick again.
_FORESIGHT_S = 1.0
#: So many times as much must be served a second by a larger batch that robots are waited for: a foresight, no promise.
_WORTH_WAITING = 1.02


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
    #: Whose share of the device it takes.
    customer: str = ""


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

    def __init__(self, *, capacity: int, batch_sizes: Sequence[int], cost: CostModel, arrivals: EventRate) -> None:
        if capacity < 1 or not batch_sizes or min(batch_sizes) < 1:
            raise ValueError("capacity and batch sizes are at least 1")
        self._capacity = capacity
        self._sizes = sorted(set(batch_sizes))
        self._cost = cost
        self._arrivals = arrivals
        #: Robot -> its requests in order; a robot without any has no entry.
        self._robots: dict[str, deque[Waiting[T]]] = {}
        self._count = 0
        self._turns = Turns()
        self._measured_s = -math.inf
        #: When the batch on the device is foreseen to end.
        self._busy_until_s = -math.inf
        self._returns = Returns()
        #: Robots of the batch on the device.
        self._riding: tuple[str, ...] = ()

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
        if not self._returns.came(waiting.robot, waiting.arrived_s):
            # Who was expected says nothing about how many others may come.
            self._arrivals.happened(waiting.arrived_s)
        if superseded or line is None:
            line = self._robots[waiting.robot] = deque()
        line.append(waiting)
        self._count += 1 - len(superseded)
        return superseded

    def measured(self, size: int, seconds: float, now_s: float) -> None:
        """A batch has come back from the device."""
        self._cost.observe(size, seconds)
        self._measured_s = now_s
        self._returns.served(self._riding, now_s, self._cost.base_s)
        self.device_free()

    def device_free(self) -> None:
        """The batch on the device has ended, be it by an error."""
        self._busy_until_s = -math.inf
        self._riding = ()

    def too_late(self, deadline_s: float, now_s: float) -> bool:
        """Whether even a batch of its own, begun as soon as the device is free, would come back after the deadline."""
        if not self._foresees(now_s):
            return deadline_s <= now_s
        return deadline_s <= max(now_s, self._busy_until_s) + self._cost.least_s

    def take_expired(self, now_s: float) -> list[Waiting[T]]:
        """Remove and return the requests that are too late, and under overload those that stand in the way.

        The log brings the oldest first. While more than a full batch waits, those who would miss the next full batch
        make room for younger ones: else all that is ever served is what comes too late. Whoever has most waiting
        gives way first.
        """
        expired = [w for line in self._robots.values() for w in line if self.too_late(w.deadline_s, now_s)]
        surplus = self._count - len(expired) - self.max_batch
        if surplus > 0 and self._foresees(now_s):
            expired += self._give_way(surplus, now_s)
        gone = set(map(id, expired))
        for robot in {waiting.robot for waiting in expired}:
            self._replace(robot, deque(w for w in self._robots[robot] if id(w) not in gone))
        self._count -= len(expired)
        return expired

    def decide(self, now_s: float) -> Dispatch[T] | Wait | Idle:
        """What an idle device does now. Requests that are too late stay, for `take_expired`."""
        self.device_free()
        alive = [w for line in self._robots.values() for w in line if not self.too_late(w.deadline_s, now_s)]
        if not alive:
            if not self._robots:
                self._turns.forget()
            return Idle()
        usual = usual_size(len(alive), self._sizes, self._cost)
        size = size_in_time(sorted(w.deadline_s - now_s for w in alive), usual, self._sizes, self._cost)
        wait_s = self._worth_waiting_s(alive, size, now_s)
        if size == usual:
            wait_s = max(wait_s, self._returning_s(alive, size, now_s))
        if wait_s > _SHORTEST_WAIT_S:
            return Wait(wait_s)
        batch = tuple(self._take(size, now_s))
        self._busy_until_s = now_s + self._cost.seconds(bucket(size, self._sizes))
        self._riding = tuple(w.robot for w in batch)
        return Dispatch(batch)

    def _foresees(self, now_s: float) -> bool:
        return now_s - self._measured_s < _FORESIGHT_S or now_s < self._busy_until_s

    def _give_way(self, surplus: int, now_s: float) -> list[Waiting[T]]:
        """At most `surplus` of those who would miss the next full batch, evenly from those who have most waiting."""
        missed_s = max(now_s, self._busy_until_s) + self._cost.seconds(self.max_batch)
        waiting: dict[str, int] = {}
        hurried: dict[str, list[Waiting[T]]] = {}
        for line in self._robots.values():
            for w in line:
                if not self.too_late(w.deadline_s, now_s):
                    waiting[w.customer] = waiting.get(w.customer, 0) + 1
                    if w.deadline_s < missed_s:
                        hurried.setdefault(w.customer, []).append(w)
        for own in hurried.values():
            own.sort(key=lambda w: w.deadline_s, reverse=True)
        gone: list[Waiting[T]] = []
        while hurried and len(gone) < surplus:
            customer = max(hurried, key=lambda name: waiting[name])
            gone.append(hurried[customer].pop())
            waiting[customer] -= 1
            if not hurried[customer]:
                del hurried[customer]
        return gone

    def _worth_waiting_s(self, alive: Sequence[Waiting[T]], size: int, now_s: float) -> float:
        """How long to wait for company; 0 where this batch already keeps up with the arrivals."""
        cost_s = self._cost.seconds(bucket(size, self._sizes))
        if size >= self.max_batch or cost_s <= 0 or size / cost_s >= self._arrivals.per_second(now_s):
            return 0.0
        oldest_s = min(waiting.arrived_s for waiting in alive)
        slack_s = min(waiting.deadline_s for waiting in alive) - now_s - cost_s
        return min(oldest_s + self._cost.base_s - now_s, slack_s)

    def _returning_s(self, alive: Sequence[Waiting[T]], size: int, now_s: float) -> float:
        """How long to wait for robots that were just served, so that more ride; 0 where that serves no more.

        The device idles for at most the base cost of a batch, which is what a larger batch saves.
        """
        if size >= self.max_batch:
            return 0.0
        began_s = max(self._measured_s, min(waiting.arrived_s for waiting in alive))
        room_s = min(
            began_s + self._cost.base_s - now_s,
            min(waiting.deadline_s for waiting in alive) - now_s - self._cost.seconds(self.max_batch),
        )
        best_rate = _WORTH_WAITING * size / max(self._cost.seconds(bucket(size, self._sizes)), 1e-9)
        best_s = latest_s = 0.0
        for more, due in enumerate(self._returns.expected(now_s), start=1):
            latest_s = max(latest_s, due.latest_s - now_s)
            # Who is later than likely may take until the latest.
            likely_s = due.likely_s - now_s if due.likely_s > now_s else latest_s
            together = min(len(alive) + more, self.max_batch)
            rate = together / (likely_s + self._cost.seconds(bucket(together, self._sizes)))
            if latest_s <= room_s and rate > best_rate:
                best_rate, best_s = rate, latest_s
        return best_s

    def _take(self, size: int, now_s: float) -> list[Waiting[T]]:
        """The `size` whose turn it is.

        A robot's line is as urgent as its most urgent request, so that order holds. Lines whose next request would
        come too late in a batch of this size ride only where there is room: full batches go to who can use them.
        """
        in_time_s = now_s + self._cost.seconds(bucket(size, self._sizes))
        lines: dict[str, list[_Line[T]]] = {}
        for number, queued in enumerate(self._robots.values()):
            line = deque(w for w in queued if not self.too_late(w.deadline_s, now_s))
            if line:
                lines.setdefault(line[0].customer, []).append(_Line(line, in_time_s, number))
        for own in lines.values():
            heapq.heapify(own)
        taken: list[Waiting[T]] = []
        while len(taken) < size:
            customer = min(lines, key=lambda name: (lines[name][0].late, self._turns.next_of(name), lines[name][0]))
            taken.append(_next_of(lines[customer], in_time_s))
            self._turns.take(customer)
            if not lines[customer]:
                del lines[customer]
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


class _Line(Generic[T]):
    """One robot's requests that may ride, in order; the line that goes first is the smallest."""

    __slots__ = ("key", "late", "number", "waiting")

    def __init__(self, waiting: deque[Waiting[T]], in_time_s: float, number: int) -> None:
        self.waiting = waiting
        self.number = number
        #: Its next request would come back after its deadline.
        self.late = waiting[0].deadline_s < in_time_s
        self.key = (self.late, min(w.deadline_s for w in waiting), waiting[0].arrived_s, number)

    def __lt__(self, other: _Line[T]) -> bool:
        return self.key < other.key


def _next_of(lines: list[_Line[T]], in_time_s: float) -> Waiting[T]:
    """Take the next request off a customer's lines, which are a heap."""
    line = lines[0]
    waiting = line.waiting.popleft()
    if line.waiting:
        heapq.heapreplace(lines, _Line(line.waiting, in_time_s, line.number))
    else:
        heapq.heappop(lines)
    return waiting
