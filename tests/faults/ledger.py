"""A ledger kept outside the system: every request sent, every answer received; and the promises it is held to.

The checks are pure: they compare what clients saw with what lies in the log, and say what is wrong.
"""

from __future__ import annotations

import itertools
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

#: Between the API's check of the deadline and the reading of its clock for the answer.
_CLOCK_S = 0.05


@dataclass(frozen=True, slots=True)
class Sent:
    """One request: what it is, not how often it was tried."""

    request_id: str
    robot_id: str
    step: int
    ttl_s: float
    #: The robot never gets to know what became of it: it produced to Kafka, or went away.
    unheard: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer to one attempt. Times are Unix epoch in seconds, by the client's clock."""

    request_id: str
    #: When the attempt that it answers was sent.
    sent_s: float
    received_s: float
    status: int
    #: Code of the refusal; empty for actions.
    code: str
    result_id: str
    #: Neither replayed nor marked as expired: the robot may execute it.
    fresh: bool
    #: From the API's receipt of the observation to its answer, by the API's clock; 0 where it does not say.
    age_s: float
    #: The request's durable outcome, which every retry gets.
    final: bool


@dataclass(frozen=True, slots=True)
class Decided:
    """One outcome record of the log."""

    request_id: str
    row_id: str
    robot_id: str
    step: int
    code: str
    result_id: str
    #: Topic, partition and offset of the request's record.
    source: tuple[str, int, int]
    #: Partition and offset of the outcome's record.
    place: tuple[int, int]


@dataclass
class Ledger:
    """Filled by the load; thread-safe."""

    sent: dict[str, Sent] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()

    def send(self, sent: Sent) -> None:
        with self._lock:
            self.sent[sent.request_id] = sent

    def receive(self, answer: Answer) -> None:
        with self._lock:
            self.answers.append(answer)


def broken_promises(ledger: Ledger, outcomes: Sequence[Decided]) -> list[str]:
    """Every promise that does not hold, in words; empty if all hold."""
    return [
        *_unanswered(ledger, outcomes),
        *_contradictions(ledger, outcomes),
        *_late(ledger),
        *_out_of_order(outcomes),
    ]


def _unanswered(ledger: Ledger, outcomes: Sequence[Decided]) -> Iterator[str]:
    heard = {answer.request_id for answer in ledger.answers if answer.final}
    decided = {outcome.request_id for outcome in outcomes}
    for sent in ledger.sent.values():
        if sent.request_id not in decided:
            yield f"{sent.request_id} of {sent.robot_id} has no outcome"
        elif not sent.unheard and sent.request_id not in heard:
            yield f"{sent.request_id} of {sent.robot_id} never got its outcome"


def _contradictions(ledger: Ledger, outcomes: Sequence[Decided]) -> Iterator[str]:
    """One identity, one outcome: in the log, and to everyone who asked."""
    found: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for outcome in outcomes:
        found[outcome.request_id].add((outcome.code, outcome.result_id))
    for answer in ledger.answers:
        if answer.final:
            found[answer.request_id].add((answer.code, answer.result_id))
    for request_id, kinds in found.items():
        if len(kinds) > 1:
            yield f"{request_id} has {len(kinds)} different outcomes: {sorted(kinds)}"


def _late(ledger: Ledger) -> Iterator[str]:
    for answer in ledger.answers:
        sent = ledger.sent.get(answer.request_id)
        if sent is None or not answer.fresh or answer.code:
            continue
        # By the API's clock: what the way back takes is the client's to see, who has the time to live itself.
        over_s = answer.age_s - _CLOCK_S - sent.ttl_s
        if over_s > 0:
            yield f"{answer.request_id} was delivered as fresh {over_s:.2f} s after its deadline"


def _out_of_order(outcomes: Sequence[Decided]) -> Iterator[str]:
    """Actions for a robot come in the order in which its requests were recorded."""
    last: dict[tuple[str, str, int], Decided] = {}
    seen: set[str] = set()
    for outcome in sorted(outcomes, key=lambda decided: decided.place):
        if outcome.code or outcome.row_id in seen:
            continue
        seen.add(outcome.row_id)
        line = (outcome.robot_id, *outcome.source[:2])
        before = last.get(line)
        if before is not None and before.source[2] > outcome.source[2]:
            yield f"{outcome.robot_id}: actions for offset {outcome.source[2]} came after those for {before.source[2]}"
        last[line] = outcome


def longest_silence_s(answers: Iterable[Answer], robot_of: dict[str, str], start_s: float, end_s: float) -> float:
    """The longest time within which some robot got no actions that it could execute."""
    times: dict[str, list[float]] = defaultdict(list)
    for answer in answers:
        robot_id = robot_of.get(answer.request_id)
        if robot_id is not None and answer.fresh and not answer.code and start_s <= answer.received_s <= end_s:
            times[robot_id].append(answer.received_s)
    longest = 0.0
    for robot in set(robot_of.values()):
        marks = [start_s, *sorted(times[robot]), end_s]
        longest = max(longest, *(later - earlier for earlier, later in itertools.pairwise(marks)))
    return longest
