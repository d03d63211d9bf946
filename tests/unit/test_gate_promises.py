"""One identity, one outcome, one answer to everybody: both agents of the gate through crashes and rebalances."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from runtime.publisher import Delivered, PublisherPort
from schemas import headers as h
from schemas.codes import Code
from schemas.messages import Outcome
from schemas.topics import REQUESTS, RESULTS
from tests.gate_bench import ACCEPTED, GateBench, request

_TOPICS = st.sampled_from([REQUESTS, RESULTS])
_NAMES = st.sampled_from("pq")


class Changelogged(dict[bytes, bytes]):
    """A table's rows in memory; each write is reported as it goes out to the changelog. None: deleted."""

    def __init__(self, report: Callable[[bytes, bytes | None], None]) -> None:
        super().__init__()
        self._report = report

    def __setitem__(self, key: bytes, value: bytes) -> None:
        super().__setitem__(key, value)
        self._report(key, value)

    def pop(self, key: bytes, default: bytes | None = None) -> bytes | None:  # type: ignore[override] # dict has overloads
        self._report(key, None)
        return super().pop(key, default)


class Died(Exception):
    """The process is gone, in the middle of what it did."""


class MortalPublisher:
    """Publishes until it is told to die: from then on nothing leaves the process."""

    def __init__(self, publisher: PublisherPort) -> None:
        self._publisher = publisher
        self.records_left = math.inf

    async def send(self, *args: Any, **options: Any) -> Delivered:
        if self.records_left <= 0:
            raise Died
        self.records_left -= 1
        return await self._publisher.send(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._publisher, name)


class Gate(RuleBasedStateMachine):
    """One partition of the gate, whose owner may die at any moment; requests, retries and reused ids; GPU workers
    that repeat themselves. The changelog arrives late: what has not arrived is lost with the process."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.bench = GateBench()
        self.publisher = MortalPublisher(self.bench.publisher)
        self.bench.publisher = cast(Any, self.publisher)
        #: Changelog records that the broker has, and how many more are on their way.
        self.changelog: list[tuple[bytes, bytes | None]] = []
        self.under_way: list[tuple[bytes, bytes | None]] = []
        self.handled = {REQUESTS: 0, RESULTS: 0}
        #: Where the changelog ended when a record was handled.
        self.ends: dict[tuple[str, int], int] = {}
        self.committed = {REQUESTS: 0, RESULTS: 0}
        self.asked: dict[str, tuple[str, int]] = {}  # correlation id -> name and content
        self.ids: dict[str, str] = defaultdict(lambda: str(uuid.uuid4()))
        self.completions = 0
        self.take_over()

    def teardown(self) -> None:
        try:
            self.everything_comes_to_rest()
        finally:
            self.loop.close()

    def take_over(self) -> None:
        """Another process reads the changelog to its end, and the topics from the committed offsets."""
        rows: dict[bytes, bytes] = {}
        for key, value in self.changelog:
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        self.under_way = []
        self.publisher.records_left = math.inf
        self.bench.store = Changelogged(lambda key, value: self.under_way.append((key, value)))
        dict.update(self.bench.store, rows)
        self.bench.start()
        self.handled = dict(self.committed)
        self.ends = {}

    # --- what happens

    @rule(name=_NAMES, content=st.integers(0, 1))
    def ask(self, name: str, content: int) -> None:
        correlation_id = f"c{len(self.asked)}"
        self.asked[correlation_id] = (name, content)
        asked = request(request_id=self.ids[name], step=content + 10 * ord(name))
        self.bench.ask(asked, correlation_id=correlation_id)

    @rule(topic=_TOPICS, count=st.integers(1, 3))
    def handle(self, topic: str, count: int) -> None:
        records = self.bench.broker.records(topic)
        for _ in range(min(count, len(records) - self.handled[topic])):
            agent = self.bench.actions if topic == RESULTS else self.bench.requests
            self.loop.run_until_complete(agent.handle(records[self.handled[topic]]))
            self.ends[topic, self.handled[topic]] = len(self.changelog) + len(self.under_way)
            self.handled[topic] += 1

    @rule()
    def infer(self) -> None:
        """Each result differs from all others, so that a second one would be seen."""
        self.completions += 1
        self.bench.infer(np.full((4, 3), [0.0001 * (self.completions % 500), 0.0, 0.0], np.float32))

    @precondition(lambda self: self.bench.broker.records(ACCEPTED))
    @rule(back=st.integers(1, 3))
    def the_worker_repeats_itself(self, back: int) -> None:
        self.bench.seen[ACCEPTED] = max(self.bench.seen.get(ACCEPTED, 0) - back, 0)

    @rule(count=st.integers(1, 4))
    def the_changelog_arrives(self, count: int) -> None:
        self.changelog += self.under_way[:count]
        del self.under_way[:count]

    @rule(topic=_TOPICS)
    def commit(self, topic: str) -> None:
        """As far as the changelog has what the records wrote; further, and a crash would forget them for good."""
        while self.ends.get((topic, self.committed[topic]), math.inf) <= len(self.changelog):
            self.committed[topic] += 1

    @rule()
    def crash(self) -> None:
        self.take_over()

    @rule(topic=_TOPICS, published=st.integers(0, 1), arrived=st.integers(0, 4))
    def crash_while_handling(self, topic: str, published: int, arrived: int) -> None:
        self.publisher.records_left = published
        with suppress(Died):
            self.handle(topic, 1)
        self.the_changelog_arrives(arrived)
        self.take_over()

    @rule()
    def rebalance(self) -> None:
        self.the_changelog_arrives(len(self.under_way))
        self.take_over()

    # --- what is promised

    @invariant()
    def no_identity_has_two_outcomes(self) -> None:
        decided: dict[str, set[tuple[str, int]]] = defaultdict(set)
        for outcome in self.bench.outcomes():
            if outcome.rejection.code != Code.REQUEST_ID_REUSED:
                decided[outcome.request.request_id].add((outcome.row_id, outcome.results_offset))
        for outcomes in decided.values():
            assert len(outcomes) == 1

    @invariant()
    def everybody_who_asked_the_same_got_the_same_answer(self) -> None:
        answers: dict[tuple[str, int], set[bytes]] = defaultdict(set)
        for answer in self.bench.answers():
            answers[self.asked[answer.headers[h.CORRELATION_ID]]].add(_said(answer.outcome))
        for said in answers.values():
            assert len(said) == 1

    def everything_comes_to_rest(self) -> None:
        for _ in range(4):
            for topic in (REQUESTS, RESULTS):
                while self.handled[topic] < len(self.bench.broker.records(topic)):
                    self.handle(topic, 1)
                self.infer()
        self.no_identity_has_two_outcomes()
        self.everybody_who_asked_the_same_got_the_same_answer()
        answered = {answer.headers[h.CORRELATION_ID] for answer in self.bench.answers()}
        assert answered == set(self.asked)


def _said(outcome: Outcome) -> bytes:
    """What an answer says: all of it but when it was decided, and who asked with which reused id."""
    said = Outcome.FromString(outcome.SerializeToString())
    said.ClearField("times")
    if said.rejection.code == Code.REQUEST_ID_REUSED:
        return said.rejection.code.encode()
    return said.SerializeToString(deterministic=True)


Gate.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, report_multiple_bugs=False
)
TestGate = Gate.TestCase
