"""The gate's memory: redelivery, retry, reuse and duplicate told apart, across restarts and partitions."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from runtime.errors import Fatal
from schemas.codes import Code
from schemas.headers import Source
from schemas.messages import ActionMatrix, Image, InferenceRequest, LastChunk, ReplyAddress, RequestRecord
from stream_agents.request_table import (
    CHUNK_WINDOW_MS,
    IDENTITY_WINDOW_MS,
    New,
    Redelivery,
    RequestTable,
    RetryOf,
    Reused,
    last_chunk,
    record_of,
)

WINDOW_MS = 300_000


@dataclass
class Log:
    """Plays one partition of the requests topic: offsets and append times only grow."""

    table: RequestTable
    partition: int = 0
    offset: int = 0
    now_ms: int = 1_000_000
    rows: list[tuple[str, RequestRecord]] = field(default_factory=list)

    def append(
        self, *, request_id: str = "", content: str = "frame", step: int = 0, correlation_id: str = "c"
    ) -> tuple[str, RequestRecord]:
        self.offset += 1
        self.now_ms += 10
        asked = InferenceRequest(
            request_id=request_id or str(uuid.uuid4()),
            robot_id="arm-1",
            instruction="pick it up",
            step=step,
            images=[Image(camera="base", data=content.encode())],
        )
        row = record_of(
            asked,
            customer_id="customer",
            source=Source("vla.requests.v1", self.partition, self.offset),
            appended_at_ms=self.now_ms,
            deadline_ms=self.now_ms + 2000,
            address=ReplyAddress(topic="vla.replies.v1", partition=1, correlation_id=correlation_id),
        )
        self.rows.append(row)
        return row

    def remember(self, row: tuple[str, RequestRecord]) -> tuple[str, RequestRecord]:
        self.table.remember(*row)
        return row


def log_of(store: dict[bytes, bytes] | None = None, dedup_window_ms: int = WINDOW_MS) -> Log:
    table = RequestTable({} if store is None else store, dedup_window_ms)
    table.restore({0})
    return Log(table)


@pytest.mark.parametrize(
    ("key", "value"),
    [(b"\xff\xfe", b"x"), (b"somebody", b"\xff\xff"), (b"somebody", b""), (b"\xff", b"")],
)
def test_what_no_gate_wrote_into_the_changelog_is_named_with_what_to_do(key: bytes, value: bytes) -> None:
    store: dict[bytes, bytes] = {}
    log = log_of(store)
    log.remember(log.append())
    store[key] = value
    with pytest.raises(Fatal, match=f"vla-gate-requests-changelog .*{key.hex()}.*GateChangelogDamaged in docs/runbook"):
        log.table.restore({0})
    assert "\n## GateChangelogDamaged" in (Path(__file__).resolve().parents[2] / "docs" / "runbook.md").read_text()
    # A tombstone for that key mends it.
    del store[key]
    log.table.restore({0})
    assert len(log.table) == 1


def test_the_same_source_record_is_a_redelivery() -> None:
    log = log_of()
    row = log.remember(log.append())
    assert isinstance(log.table.standing(*row), Redelivery)


def test_the_same_identity_and_content_from_another_record_is_a_retry_of_the_first() -> None:
    log = log_of()
    first_id, _ = log.remember(log.append(request_id="q"))
    standing = log.table.standing(*log.append(request_id="q"))
    assert isinstance(standing, RetryOf)
    assert standing.row_id == first_id


def test_the_same_identity_with_other_content_is_reuse_and_leaves_the_first_in_place() -> None:
    log = log_of()
    first_id, _ = log.remember(log.append(request_id="q"))
    reused = log.append(request_id="q", content="another frame")
    assert isinstance(log.table.standing(*reused), Reused)
    reused[1].refusal = Code.REQUEST_ID_REUSED
    log.remember(reused)
    standing = log.table.standing(*log.append(request_id="q"))
    assert isinstance(standing, RetryOf)
    assert standing.row_id == first_id


def test_an_identity_beyond_the_window_is_simply_another_request() -> None:
    log = log_of()
    log.remember(log.append(request_id="q"))
    log.now_ms += IDENTITY_WINDOW_MS + 1
    assert isinstance(log.table.standing(*log.append(request_id="q")), New)


def test_the_same_observation_under_another_id_is_a_duplicate_within_the_window() -> None:
    log = log_of()
    log.remember(log.append())
    assert log.table.is_duplicate(*log.append())
    assert not log.table.is_duplicate(*log.append(step=1))
    assert not log.table.is_duplicate(*log.append(content="another frame"))
    log.now_ms += WINDOW_MS + 1
    assert not log.table.is_duplicate(*log.append())


def test_a_window_of_zero_switches_duplicates_off_but_not_retries() -> None:
    log = log_of(dedup_window_ms=0)
    log.remember(log.append(request_id="q"))
    assert not log.table.is_duplicate(*log.append())
    assert isinstance(log.table.standing(*log.append(request_id="q")), RetryOf)


def test_a_refused_observation_may_be_sent_again_also_after_a_restart() -> None:
    store: dict[bytes, bytes] = {}
    log = log_of(store)
    row_id, _ = log.remember(log.append())
    assert log.table.is_duplicate(*log.append())
    log.table.decide(row_id, 7, refused=True)
    assert not log.table.is_duplicate(*log.append())
    assert not log_of(store).table.is_duplicate(*log.append())


def test_the_first_outcome_wins_and_clears_who_waits() -> None:
    log = log_of()
    row_id, _ = log.remember(log.append())
    log.table.wait(row_id, ReplyAddress(topic="t", partition=2, correlation_id="d"))
    log.table.decide(row_id, 7, refused=False)
    log.table.decide(row_id, 8, refused=True)
    record = log.table.get(row_id)
    assert record is not None
    assert (record.decided, record.outcome_offset, record.refused, len(record.waiting)) == (True, 7, False, 0)


def test_an_address_waits_once_however_often_it_is_redelivered() -> None:
    log = log_of()
    row_id, record = log.remember(log.append(correlation_id="c"))
    address = ReplyAddress(topic="t", partition=2, correlation_id="d")
    log.table.wait(row_id, address)
    log.table.wait(row_id, address)
    assert [a.correlation_id for a in record.waiting] == ["c", "d"]


def test_eviction_lets_go_of_decided_rows_only() -> None:
    store: dict[bytes, bytes] = {}
    log = log_of(store)
    decided, _ = log.remember(log.append())
    open_row, _ = log.remember(log.append(step=1))
    log.table.decide(decided, 1, refused=False)
    later = log.now_ms + IDENTITY_WINDOW_MS + 100
    assert log.table.evict(0, later) == 1
    assert list(store) == [open_row.encode()]
    log.table.decide(open_row, 2, refused=False)
    assert log.table.evict(0, later) == 1
    assert not store


def chunk_of(robot: int, partition: int, at_ms: int) -> tuple[str, str, LastChunk]:
    source = Source("vla.requests.v1", partition, robot)
    actions = ActionMatrix(horizon=1, dim=1, values=[0.5])
    return "customer", f"arm-{robot}", last_chunk(actions, source=source, episode_id="e", deployment="d", at_ms=at_ms)


def chunks_of(table: RequestTable, robots: int) -> set[int]:
    later = Source("vla.requests.v1", 0, 1000)
    return {robot for robot in range(robots) if table.chunk_before("customer", f"arm-{robot}", later) is not None}


def test_a_chunk_leaves_the_table_and_its_store_once_nothing_can_continue_it() -> None:
    """Robot ids are the callers' choice: a new one for each episode must not fill the table."""
    store: dict[bytes, bytes] = {}
    table = RequestTable(store, dedup_window_ms=2000)
    for robot in range(6):
        table.remember_chunk(*chunk_of(robot, robot % 2, at_ms=1000 * robot))
    table.remember_chunk(*chunk_of(0, 0, at_ms=6000))
    table.evict(0, CHUNK_WINDOW_MS + 2001)
    assert chunks_of(table, 6) == {0, 1, 3, 4, 5}
    table.evict(1, CHUNK_WINDOW_MS + 3001)
    assert chunks_of(table, 6) == {0, 4, 5}
    assert len(store) == 3
    table.evict(0, CHUNK_WINDOW_MS + 9000, limit=1)
    assert chunks_of(table, 6) == {0, 5}


def test_chunks_of_other_partitions_are_not_restored_and_those_without_one_stay() -> None:
    store: dict[bytes, bytes] = {}
    table = RequestTable(store, dedup_window_ms=2000)
    for robot in range(4):
        customer, name, chunk = chunk_of(robot, robot % 2, at_ms=9000 - robot)
        if robot == 3:
            chunk.ClearField("source_partition")
        table.remember_chunk(customer, name, chunk)
    restored = RequestTable(store, dedup_window_ms=2000)
    restored.restore({0})
    assert chunks_of(restored, 4) == {0, 2, 3}
    restored.evict(0, CHUNK_WINDOW_MS + 8999)
    assert chunks_of(restored, 4) == {0, 3}


def test_a_robot_that_changes_its_partition_keeps_its_newest_chunk() -> None:
    table = RequestTable({}, dedup_window_ms=2000)
    table.remember_chunk(*chunk_of(1, 0, at_ms=1000))
    table.remember_chunk(*chunk_of(1, 1, at_ms=2000))
    table.evict(0, CHUNK_WINDOW_MS + 1500)
    assert chunks_of(table, 2) == {1}


def test_the_previous_chunk_is_one_of_an_earlier_request_only() -> None:
    store: dict[bytes, bytes] = {}
    log = log_of(store)
    source = Source("vla.requests.v1", 0, 5)
    actions = ActionMatrix(horizon=1, dim=2, values=[0.5, 0.25])
    log.table.remember_chunk(
        "customer", "arm-1", last_chunk(actions, source=source, episode_id="e", deployment="d", at_ms=1)
    )
    for table in (log.table, log_of(store).table):
        assert table.chunk_before("customer", "arm-1", Source("vla.requests.v1", 0, 5)) is None
        assert table.chunk_before("customer", "arm-1", Source("vla.requests.north.v1", 0, 9)) is None
        assert table.chunk_before("customer", "arm-2", Source("vla.requests.v1", 0, 9)) is None
        chunk = table.chunk_before("customer", "arm-1", Source("vla.requests.v1", 0, 6))
        assert chunk is not None
        assert list(chunk.actions.values) == [0.5, 0.25]


class TableAcrossRestarts(RuleBasedStateMachine):
    """Whatever is sent, decided, evicted and restarted, in whatever order: one first outcome for each identity."""

    sent = Bundle("sent")

    def __init__(self) -> None:
        super().__init__()
        self.store: dict[bytes, bytes] = {}
        self.log = log_of(self.store)
        self.first: dict[str, tuple[str, int]] = {}  # identity -> row id and append time
        self.outcome: dict[str, int] = {}  # row id -> offset
        self.next_outcome = 0

    @rule(
        target=sent,
        request_id=st.sampled_from("pqr"),
        content=st.sampled_from(["one", "two"]),
        wait=st.integers(0, 400_000),
    )
    def send(self, request_id: str, content: str, wait: int) -> tuple[str, RequestRecord]:
        self.log.now_ms += wait
        row_id, record = self.log.append(request_id=request_id, content=content)
        standing = self.log.table.standing(row_id, record)
        known = self.first.get(request_id)
        if known is None or record.appended_at_ms - known[1] > IDENTITY_WINDOW_MS:
            assert isinstance(standing, New)
            self.first[request_id] = (row_id, record.appended_at_ms)
            self.log.remember((row_id, record))
        else:
            assert isinstance(standing, RetryOf | Reused)
            if isinstance(standing, RetryOf):
                assert standing.row_id == known[0]
                assert standing.record.decided == (known[0] in self.outcome)
                if standing.record.decided:
                    assert standing.record.outcome_offset == self.outcome[known[0]]
            else:
                record.refusal = Code.REQUEST_ID_REUSED
                self.log.remember((row_id, record))
        return row_id, record

    @rule(row=sent)
    def redeliver(self, row: tuple[str, RequestRecord]) -> None:
        row_id, _ = row
        known = self.log.table.get(row_id)
        if known is not None:
            standing = self.log.table.standing(*row)
            assert isinstance(standing, Redelivery)
            assert standing.record.decided == (row_id in self.outcome)

    @rule(row=sent, refused=st.booleans())
    def decide(self, row: tuple[str, RequestRecord], refused: bool) -> None:
        row_id, _ = row
        if self.log.table.get(row_id) is None:
            return
        self.next_outcome += 1
        self.outcome.setdefault(row_id, self.next_outcome)
        self.log.table.decide(row_id, self.next_outcome, refused=refused)

    @rule()
    def evict(self) -> None:
        self.log.table.evict(0, self.log.now_ms, limit=100)

    @rule()
    def restart(self) -> None:
        self.log.table = RequestTable(self.store, WINDOW_MS)
        self.log.table.restore({0})

    @rule()
    def lose_and_regain_the_partition(self) -> None:
        self.log.table.restore(set())
        assert len(self.log.table) == 0
        self.log.table.restore({0})

    @invariant()
    def decided_rows_keep_their_first_outcome(self) -> None:
        for row_id, offset in self.outcome.items():
            record = self.log.table.get(row_id)
            if record is not None:
                assert record.decided
                assert record.outcome_offset == offset


TableAcrossRestarts.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestTableAcrossRestarts = TableAcrossRestarts.TestCase
