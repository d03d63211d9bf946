"""One fault under load, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from runtime.settings import Settings
from schemas.topics import GATE_APP, REQUESTS, RESULTS, requests_topic
from sinks.books import Books, read_books
from tests.e2e.running_stack import RunningStack
from tests.faults import log
from tests.faults.faults import Fault
from tests.faults.ledger import broken_promises, longest_silence_s
from tests.faults.load import FLEET, Load
from tests.faults.offsets import CommitWatch, premature
from tests.faults.scene import CARDS, Scene


@dataclass(frozen=True)
class Result:
    """Of one fault. `silence_s`: the longest time in which some robot got no actions that it could execute."""

    fault: str
    lasted_s: float
    silence_s: float
    sent: int
    broken: tuple[str, ...]
    books: Books

    @property
    def held(self) -> bool:
        return not self.broken and self.books.balanced

    def line(self) -> str:
        verdict = "held" if self.held else f"BROKEN: {'; '.join(self.broken[:3]) or self.books.explain()}"
        return (
            f"{self.fault:<48} {self.lasted_s:6.1f} s  silence {self.silence_s:5.1f} s  "
            f"{self.sent:5d} requests  {verdict}"
        )


def play(stack: RunningStack, fault: Fault) -> Result:
    """Strike under load, let the load go on until robots are served again, and hold everything to its promises."""
    settings = stack.settings
    topics = dict.fromkeys((REQUESTS, requests_topic(FLEET), RESULTS), settings.kafka_partitions)
    with CommitWatch(settings, GATE_APP, topics) as watch, Load(stack) as load:
        load.wait_for_answers(20)
        struck_s, began = time.time(), time.monotonic()
        fault.strike(Scene(stack, load))
        load.wait_for_answers(30)
        lasted_s, ended_s = time.monotonic() - began, time.time()
    return Result(
        fault=fault.name,
        lasted_s=lasted_s,
        silence_s=longest_silence_s(load.ledger.answers, load.scheduled_robots, struck_s, ended_s),
        sent=len(load.ledger.sent),
        broken=tuple(_broken(settings, load, watch)),
        books=read_books(settings, wait_s=90),
    )


def _broken(settings: Settings, load: Load, watch: CommitWatch) -> list[str]:
    # Fleets do not hear of it here: their outcomes are waited for in the log.
    end = time.monotonic() + 60
    while True:
        found = log.outcomes(settings)
        if load.ledger.sent.keys() <= {outcome.request.request_id for outcome, _ in found} or time.monotonic() > end:
            break
    mine = [decided for decided in log.decided(found) if decided.request_id in load.ledger.sent]
    flow = log.gate_flow(settings, found, [card.deployment for card in CARDS.models])
    return [*broken_promises(load.ledger, mine), *premature(watch.commits, flow)]
