"""Exactly once, as bookkeeping: whatever is cut, dropped and read again, each request is written once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sinks.marks import Added, Batch, Buffer, Entry, Limits, Mark

WIDE = Limits(rows=1000, size_bytes=1_000_000, age_s=10)


def entry(offset: int, number: int | None = None, *, size: int = 1, cut: str = "", series: str = "s") -> Entry[int]:
    number = offset if number is None else number
    return Entry(offset=offset, row=number, series=series, number=number, size_bytes=size, timestamp_ms=offset, cut=cut)


def taken(buffer: Buffer[int]) -> Batch[int]:
    batch = buffer.batch()
    assert batch is not None
    return batch


def test_a_batch_carries_the_mark_that_stands_for_it() -> None:
    buffer = Buffer[int](Mark(5, {"s": 4}), 5, WIDE)
    for offset in (5, 6):
        assert buffer.add(entry(offset), 0) is Added.YES
    batch = taken(buffer)
    assert (batch.rows, batch.before, batch.after) == ([5, 6], Mark(5, {"s": 4}), Mark(7, {"s": 6}))


def test_a_number_not_above_the_last_is_a_repeat() -> None:
    buffer = Buffer[int](Mark(5, {"s": 9}), 5, WIDE)
    assert buffer.add(entry(5, 9), 0) is Added.REPEAT
    assert buffer.add(entry(6, 10), 0) is Added.YES
    assert buffer.add(entry(7, 10), 0) is Added.REPEAT
    assert taken(buffer).after == Mark(8, {"s": 10})


def test_series_do_not_hide_each_other() -> None:
    buffer = Buffer[int](Mark(), 0, WIDE)
    assert buffer.add(entry(0, 100, series="a"), 0) is Added.YES
    assert buffer.add(entry(1, 1, series="b"), 0) is Added.YES


def test_an_offset_below_the_position_is_behind() -> None:
    buffer = Buffer[int](Mark(5), 7, WIDE)
    assert buffer.add(entry(6), 0) is Added.BEHIND
    assert buffer.position == 7


def test_a_batch_is_due_by_rows_by_bytes_by_age_and_by_cut() -> None:
    limits = Limits(rows=2, size_bytes=10, age_s=5)
    by_rows, by_bytes, by_age, by_cut = (Buffer[int](Mark(), 0, limits) for _ in range(4))
    by_rows.add(entry(0), 0)
    assert not by_rows.due(0)
    by_rows.add(entry(1), 0)
    assert by_rows.due(0)
    by_bytes.add(entry(0, size=10), 0)
    assert by_bytes.due(0)
    by_age.add(entry(0), 100)
    assert not by_age.due(104.9)
    assert by_age.due(105)
    by_cut.add(entry(0, cut="monday"), 0)
    by_cut.add(entry(1, cut="tuesday"), 0)
    assert by_cut.due(0)
    assert taken(by_cut).rows == [0]


def test_one_row_larger_than_a_batch_is_written_alone() -> None:
    buffer = Buffer[int](Mark(), 0, Limits(rows=10, size_bytes=10, age_s=5))
    buffer.add(entry(0, size=50), 0)
    buffer.add(entry(1, size=1), 0)
    assert taken(buffer).rows == [0]


def test_records_passed_over_behind_the_last_row_are_settled_with_it() -> None:
    buffer = Buffer[int](Mark(), 0, WIDE)
    buffer.add(entry(0), 0)
    buffer.skip(1)
    assert buffer.committable == 0
    batch = taken(buffer)
    buffer.written(batch, 0)
    assert (batch.after.next_offset, buffer.committable) == (2, 2)


def test_records_passed_over_alone_move_the_commit_and_not_the_mark() -> None:
    buffer = Buffer[int](Mark(3), 3, WIDE)
    buffer.skip(3)
    assert buffer.committable == 4
    buffer.add(entry(4), 0)
    assert taken(buffer).before == Mark(3)


class _StoreOfOnePartition:
    """Takes a batch only on top of the mark that it has."""

    def __init__(self) -> None:
        self.mark = Mark()
        self.rows: list[int] = []

    def write(self, batch: Batch[int]) -> bool:
        if batch.before != self.mark:
            return False
        self.rows += batch.rows
        self.mark = batch.after
        return True


@given(data=st.data())
def test_a_crash_at_any_point_and_repeats_upstream_leave_each_request_written_once(data: st.DataObject) -> None:
    """Two processes, each of which may crash, lose its partition unnoticed, or read on; one log with repeats."""
    # The writer upstream restarts now and then some records back: numbers fall, and rise again to new ones.
    log: list[int] = []
    following = 0
    for back in data.draw(st.lists(st.integers(0, 3), max_size=30)):
        following = max(following - back, 0)
        log.append(following)
        following += 1
    limits = Limits(rows=data.draw(st.integers(1, 4)), size_bytes=1000, age_s=1)
    store = _StoreOfOnePartition()
    committed = 0
    processes = [Buffer[int](Mark(), 0, limits) for _ in range(2)]
    for action in data.draw(st.lists(st.sampled_from(["read", "write", "commit", "crash"]), max_size=80)):
        which = data.draw(st.integers(0, 1))
        buffer = processes[which]
        if action == "read" and buffer.position < len(log):
            buffer.add(entry(buffer.position, log[buffer.position]), 0)
        elif action == "write" and (batch := buffer.batch()) is not None:
            if store.write(batch):
                buffer.written(batch, 0)
            else:
                processes[which] = Buffer(store.mark, max(store.mark.next_offset, committed), limits)
        elif action == "commit":
            committed = max(committed, buffer.committable)
        elif action == "crash":
            processes[which] = Buffer(store.mark, max(store.mark.next_offset, committed), limits)
    last = Buffer[int](store.mark, max(store.mark.next_offset, committed), limits)
    while last.position < len(log):
        last.add(entry(last.position, log[last.position]), 0)
    while (batch := last.batch()) is not None:
        assert store.write(batch)
        last.written(batch, 0)
    assert store.rows == sorted(set(log))
