"""The whole loop of a sink through crashes, lost answers, stores that are away and members that come and go."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sinks.flow import Flow
from sinks.marks import Limits
from tests.in_memory import InMemoryConsumer
from tests.unit.test_sinks_flow import TOPIC, Case

_WHICH = st.integers(0, 1)


class SinkMachine(RuleBasedStateMachine):
    """Two members of a group over one partition, one store, and a writer upstream that repeats itself."""

    def __init__(self) -> None:
        super().__init__()
        self.case = Case(Limits(rows=3, size_bytes=1000, age_s=5))
        self.next = 0
        self.members: list[tuple[Flow[int], InMemoryConsumer]] = [self.case.flow()]

    def teardown(self) -> None:
        self.case.store.away = False
        self.case.store.before_write = None
        self.case.store.lose_answer = False
        for _ in range(4):
            self.case.now_s += 10
            for flow, _consumer in self.members:
                for _ in range(self.next + 2):
                    flow.round()
        assert self.case.store.rows == list(range(self.next))
        assert self.case.committed in (None, self.case.broker.end((TOPIC, 0)))

    @rule(count=st.integers(1, 4), back=st.integers(0, 3))
    def append(self, count: int, back: int) -> None:
        """New numbers; before them some that were there already, as after a crash upstream."""
        self.case.append(*range(max(self.next - back, 0), self.next + count))
        self.next += count

    @rule(which=_WHICH, rounds=st.integers(1, 4))
    def round(self, which: int, rounds: int) -> None:
        for _ in range(rounds):
            self.members[which % len(self.members)][0].round()

    @rule()
    def time_passes(self) -> None:
        self.case.now_s += 6

    @rule(away=st.booleans())
    def the_store_goes_or_comes(self, away: bool) -> None:
        self.case.store.away = away

    @rule()
    def an_answer_will_be_lost(self) -> None:
        self.case.store.lose_answer = True

    @rule(number=st.integers(1, 2))
    def commits_will_fail(self, number: int) -> None:
        self.case.broker.failing_commits = number

    @precondition(lambda self: len(self.members) == 1)
    @rule()
    def another_joins(self) -> None:
        self.members.append(self.case.flow())

    @rule(which=_WHICH)
    def one_dies_and_starts_again(self, which: int) -> None:
        """Nothing is flushed and nothing committed: the group notices, and a new member begins."""
        which %= len(self.members)
        self.case.broker.evict(self.members[which][1])
        self.members[which] = self.case.flow()

    @invariant()
    def no_row_is_there_twice_or_before_an_earlier_one(self) -> None:
        assert self.case.store.rows == list(range(len(self.case.store.rows)))

    @invariant()
    def no_commit_passes_a_row_that_is_not_written(self) -> None:
        committed = self.case.committed or 0
        read = [int(record.value or b"") for record in self.case.broker.records(TOPIC)[:committed]]
        assert set(read) <= set(self.case.store.rows)


SinkMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None, derandomize=True)
TestSinkResume = SinkMachine.TestCase
