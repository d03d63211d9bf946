"""The low-water mark: a commit never passes a record that is not done."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runtime.offsets import LowWater


@given(st.sets(st.integers(0, 10_000), min_size=1, max_size=50), st.randoms(use_true_random=False))
def test_the_mark_never_passes_an_unfinished_record_and_ends_behind_the_last(offsets: set[int], rng: Random) -> None:
    ordered = sorted(offsets)
    water = LowWater()
    for offset in ordered:
        assert water.start(offset)
    finishing = list(ordered)
    rng.shuffle(finishing)
    unfinished = set(ordered)
    for offset in finishing:
        water.done(offset)
        unfinished.discard(offset)
        mark = water.committable()
        assert mark is None or all(mark <= left for left in unfinished)
        assert water.in_flight == len(unfinished)
    assert water.committable() == ordered[-1] + 1
    assert len(water) == 0


class LowWaterMachine(RuleBasedStateMachine):
    """Any order of starting, finishing and committing, against a model that remembers everything."""

    @initialize(first=st.integers(0, 100))
    def begin(self, first: int) -> None:
        self.water = LowWater()
        self.next = first
        self.started: list[int] = []
        self.unfinished: set[int] = set()
        self.broker = first

    @rule(gap=st.integers(0, 3))
    def start(self, gap: int) -> None:
        offset = self.next + gap
        assert self.water.start(offset)
        self.started.append(offset)
        self.unfinished.add(offset)
        self.next = offset + 1

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def start_again(self, data: st.DataObject) -> None:
        assert not self.water.start(data.draw(st.sampled_from(self.started)))

    @precondition(lambda self: self.started)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.started))
        self.water.done(offset)
        self.unfinished.discard(offset)

    @rule(offset=st.integers(1_000_000, 2_000_000))
    def finish_what_never_started(self, offset: int) -> None:
        self.water.done(offset)

    @rule(taken=st.booleans())
    def commit(self, taken: bool) -> None:
        mark = self.water.committable()
        if mark is not None and taken:
            assert mark > self.broker
            self.broker = mark
            self.water.committed(mark)

    @rule()
    def late_report_of_an_old_commit(self) -> None:
        self.water.committed(0)

    @invariant()
    def nothing_unfinished_lies_below_the_mark(self) -> None:
        mark = self.water.committable()
        if mark is not None:
            assert all(mark <= offset for offset in self.unfinished)
        finished = [o for o in self.started if o not in self.unfinished and o < min(self.unfinished, default=o + 1)]
        if finished and finished[-1] + 1 > self.broker:
            assert mark == finished[-1] + 1
        assert self.water.in_flight == len(self.unfinished)


TestLowWaterMachine = LowWaterMachine.TestCase


def test_nothing_is_committable_before_the_first_record_is_done() -> None:
    water = LowWater()
    assert water.committable() is None
    water.start(7)
    assert water.committable() is None
    water.done(7)
    assert water.committable() == 8


def test_a_failed_commit_stays_committable_until_the_broker_has_it() -> None:
    water = LowWater()
    water.start(0)
    water.done(0)
    assert water.committable() == 1
    assert water.committable() == 1
    water.committed(1)
    assert water.committable() is None
