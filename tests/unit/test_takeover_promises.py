"""Offsets through skipped, repeated and moved events: no commit passes a record that is not finished."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stream_agents.takeover import Progress

PLACE = ("vla.requests.v1", 3)


class ProgressMachine(RuleBasedStateMachine):
    """A partition whose log has holes, read by two processes in turn; Faust hands on what it likes, in order."""

    @initialize(holes=st.sets(st.integers(0, 30), max_size=8), length=st.integers(0, 31))
    def begin(self, holes: set[int], length: int) -> None:
        self.log = [offset for offset in range(length) if offset not in holes]
        self.end = length
        self.committed: int | None = None
        #: Finished by anybody, ever.
        self.done: set[int] = set()
        self.processes = [Progress(), Progress()]
        self.owner = 0
        self.position = 0
        self.begun: list[int] = []

    @property
    def progress(self) -> Progress:
        return self.processes[self.owner]

    @rule(skipped=st.integers(0, 3))
    def an_event(self, skipped: int) -> None:
        """Faust hands on an event, perhaps without some before it; those are looked up in the log."""
        ahead = [offset for offset in self.log if offset >= self.position]
        if len(ahead) <= skipped:
            return
        offset = ahead[skipped]
        missed = self.progress.missed(PLACE, offset, self.committed)
        found = [at for at in self.log if at in missed]
        self.progress.pass_over(PLACE, missed, found)
        assert set(self.log[: self.log.index(offset)]) <= {*found, *self.done, *self.begun}
        self.begun += [*found, offset]
        self.position = offset + 1

    @precondition(lambda self: self.begun)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        offset = data.draw(st.sampled_from(self.begun))
        self.begun.remove(offset)
        self.done.add(offset)
        self.progress.finish(PLACE, offset)

    @rule(taken=st.booleans())
    def commit(self, taken: bool) -> None:
        offset = self.progress.committable(PLACE, self.committed)
        if offset is not None and taken:
            assert offset > (self.committed or 0)
            self.committed = offset

    @rule(other=st.booleans(), fresh=st.booleans())
    def the_partition_moves(self, other: bool, fresh: bool) -> None:
        """To the other process or back to the same one, which may have been started anew."""
        if other:
            self.progress.moved(set())
            self.owner = 1 - self.owner
        if fresh:
            self.processes[self.owner] = Progress()
        self.progress.moved({PLACE[1]})
        self.position, self.begun = self.committed or 0, []

    @invariant()
    def no_record_below_the_commit_is_unfinished(self) -> None:
        for committed in (self.committed, self.progress.committable(PLACE, self.committed)):
            assert {offset for offset in self.log if offset < (committed or 0)} <= self.done

    def teardown(self) -> None:
        self.the_partition_moves(other=True, fresh=True)
        for _ in self.log:
            self.an_event(0)
        for offset in self.begun:
            self.done.add(offset)
            self.progress.finish(PLACE, offset)
        self.commit(taken=True)
        assert (self.committed or 0) >= (self.log[-1] + 1 if self.log else 0)


ProgressMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None, derandomize=True)
TestProgress = ProgressMachine.TestCase
