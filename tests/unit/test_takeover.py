"""What the gate commits while Faust skips, repeats and moves partitions."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from stream_agents.takeover import ChangelogWrites, Progress

PLACE = ("vla.requests.v1", 3)


def test_nothing_is_committed_past_an_event_that_is_not_finished() -> None:
    progress = Progress()
    for offset in (5, 6, 7):
        assert not progress.missed(PLACE, offset, 5)
    progress.finish(PLACE, 6)
    progress.finish(PLACE, 7)
    assert progress.committable(PLACE, 5) is None
    progress.finish(PLACE, 5)
    assert progress.committable(PLACE, 5) == 8


def test_a_commit_that_failed_is_offered_again() -> None:
    progress = Progress()
    progress.finish(PLACE, 5)
    assert progress.committable(PLACE, 5) == 6
    assert progress.committable(PLACE, 5) == 6
    assert progress.committable(PLACE, 6) is None


def test_the_first_event_tells_what_was_skipped_since_the_committed_offset() -> None:
    progress = Progress()
    assert progress.missed(PLACE, 9, 7) == range(7, 9)
    assert not progress.missed(PLACE, 10, 7)
    progress.moved({3})
    # Read again from before: nothing is missing.
    assert not progress.missed(PLACE, 7, 7)


def test_a_partition_that_nobody_has_committed_starts_at_its_first_offset() -> None:
    progress = Progress()
    assert progress.missed(PLACE, 2, None) == range(2)
    progress.pass_over(PLACE, range(2), [1])
    progress.finish(PLACE, 2)
    assert progress.committable(PLACE, None) == 1
    progress.finish(PLACE, 1)
    assert progress.committable(PLACE, 1) == 3


def test_what_no_agent_got_yet_reaches_to_the_known_end() -> None:
    progress = Progress()
    assert list(progress.unread(PLACE, None, 2)) == [0, 1]
    assert list(progress.unread(PLACE, 1, 2)) == [1]
    assert not progress.unread(PLACE, 1, None)
    progress.missed(PLACE, 1, 1)
    assert not progress.unread(PLACE, 1, 2)


def test_what_is_finished_is_forgotten_with_its_partition() -> None:
    progress = Progress()
    progress.finish(PLACE, 5)
    progress.moved({1, 2})
    assert progress.committable(PLACE, 5) is None


async def test_each_piece_of_work_knows_its_own_changelog_records() -> None:
    table = SimpleNamespace(send_changelog=lambda key: asyncio.get_running_loop().create_future())
    changelog, turn = ChangelogWrites(table), asyncio.Event()

    async def work(keys: list[str]) -> tuple[list[object], list[object]]:
        writes = changelog.begin()
        sent = [table.send_changelog(keys[0])]
        await turn.wait()
        sent += [table.send_changelog(key) for key in keys[1:]]
        return list(writes), sent

    one, other = asyncio.create_task(work(["a", "b"])), asyncio.create_task(work(["c"]))
    await asyncio.sleep(0)
    turn.set()
    for task, count in ((one, 2), (other, 1)):
        writes, sent = await task
        assert writes == sent
        assert len(writes) == count


@given(
    st.sets(st.integers(0, 40), min_size=1),
    st.data(),
)
def test_offsets_pass_every_hole_and_no_unfinished_record(offsets: set[int], data: st.DataObject) -> None:
    """Records lie at some offsets, Faust hands on some of them, agents finish some, commits succeed or fail."""
    progress, committed = Progress(), None
    present = sorted(offsets)
    handed_on = [*sorted(data.draw(st.sets(st.sampled_from(present)))), present[-1]]
    done: set[int] = set()
    for offset in handed_on:
        missed = progress.missed(PLACE, offset, committed)
        found = [at for at in present if at in missed]
        progress.pass_over(PLACE, missed, found)
        for at in [*found, offset]:
            progress.finish(PLACE, at)
            done.add(at)
        new = progress.committable(PLACE, committed)
        if new is not None:
            assert new > (committed or 0)
            assert {at for at in present if at < new} <= done
            if data.draw(st.booleans(), label="the commit succeeds"):
                committed = new
    final = progress.committable(PLACE, committed)
    assert (final if final is not None else committed) == present[-1] + 1
