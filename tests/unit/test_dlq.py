"""Dead letters in an operator's hands: which are meant, how they read, what is sent again, what may go."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.dead_letters import CUT_BYTES, dead_letter_headers
from runtime.dlq.letters import Letter, Selection, letter_of, parse_moment, parse_place
from runtime.dlq.pages import line, page
from runtime.dlq.purge import plan_purge
from runtime.dlq.replay import REPLAYED_FROM, Again, Cluster, Unfit, again
from runtime.errors import Fatal, Poison
from runtime.kafka import Record
from schemas import headers as h
from schemas.messages import Completion, Image, InferenceRequest, Outcome
from schemas.topics import OUTCOMES, REQUESTS, RESULTS, dead_letter_topic

CLUSTER = Cluster(partitions={REQUESTS: 4, RESULTS: 4, OUTCOMES: 4}, results_ends=dict.fromkeys(range(4), 100))


def dead(topic: str = REQUESTS, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "topic": topic,
        "partition": 2,
        "offset": 9,
        "key": b"arm-1",
        "value": b"\xff\x00",
        "timestamp_ms": 5,
        "raw_headers": [("request_id", b"r-1"), ("dlq.reason", b"forged"), ("x", b"\x1b[2J\xff")],
        **changes,
    }
    return Record(**fields)


def letter(
    record: Record | None = None, *, offset: int = 0, at_ms: int = 60_000, reason: str = "undecodable", cut: int = 0
) -> Letter:
    """What lies in the dead letter topic after a stage buried a record."""
    record = record or dead()
    poison = Poison(reason, "the value is no message")
    headers = dead_letter_headers(record, reason=reason, stage="request_gate", group="vla-gate", error=poison)
    headers += [(CUT_BYTES, str(cut).encode())] if cut else []
    topic = dead_letter_topic(record.topic)
    return letter_of(Record(topic, 0, offset, record.key, record.value, at_ms, headers))


def test_a_letter_says_what_died_where_when_and_why() -> None:
    found = letter(offset=3)
    assert found.place == h.Source(f"{REQUESTS}.dlq", 0, 3)
    assert found.source == h.Source(REQUESTS, 2, 9)
    assert (found.topic, found.reason, found.stage, found.group) == (
        REQUESTS, "undecodable", "request_gate", "vla-gate",
    )  # fmt: skip
    assert (found.died_at_ms, found.appended_at_ms, found.cut_bytes, found.request_id) == (60_000, 5, 0, "r-1")
    assert found.original_headers == [("request_id", b"r-1"), ("x", b"\x1b[2J\xff")]


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(["__connect.errors.partition", "__connect.errors.topic", "dlq.cut_bytes", "request_id"])
            | st.text(max_size=8),
            st.binary(max_size=12),
        )
    ),
    value=st.none() | st.binary(max_size=2000),
    topic=st.sampled_from([REQUESTS, RESULTS, OUTCOMES]),
)
def test_whatever_lies_in_the_topic_can_be_listed_and_shown(
    headers: list[tuple[str, bytes]], value: bytes | None, topic: str
) -> None:
    found = letter_of(Record(dead_letter_topic(topic), 0, 1, None, value, 60_000, headers))
    texts = [line(found), *(text for block in page(found) for text in block.split("\n"))]
    assert all(text.isprintable() for text in texts)
    assert isinstance(again(found, CLUSTER), Again | Unfit)


# --- which letters


@pytest.mark.parametrize(
    ("selection", "meant"),
    [
        (Selection(), True),
        (Selection(topics=[REQUESTS]), True),
        (Selection(topics=[f"{REQUESTS}.dlq"]), True),
        (Selection(topics=[OUTCOMES]), False),
        (Selection(reasons=["undecodable", "other"]), True),
        (Selection(reasons=["other"]), False),
        (Selection(since_ms=60_000), True),
        (Selection(since_ms=60_001), False),
        (Selection(until_ms=60_000), False),
        (Selection(until_ms=60_001), True),
        (Selection(places=[h.Source(f"{REQUESTS}.dlq", 0, 0)]), True),
        (Selection(places=[h.Source(REQUESTS, 2, 9)]), True),
        (Selection(places=[h.Source(REQUESTS, 0, 0)]), False),
        (Selection(topics=[REQUESTS], reasons=["other"]), False),
    ],
)
def test_a_letter_is_meant_when_it_fits_every_filter(selection: Selection, meant: bool) -> None:
    found = letter()
    assert selection.matches(found) is meant
    assert selection.wants_topic(found.place.topic) or not meant


@pytest.mark.parametrize(
    ("text", "at_s"),
    [
        ("1970-01-01T01:00:00Z", 3600),
        ("1970-01-01T01:00:00", 3600),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-02", 86_400),
        ("15m", 1_000_000 - 900),
        ("90s", 1_000_000 - 90),
        ("2h", 1_000_000 - 7200),
        ("3d", 1_000_000 - 259_200),
    ],
)
def test_times_are_iso_or_so_long_ago(text: str, at_s: int) -> None:
    assert parse_moment(text, 1_000_000) == at_s * 1000


@pytest.mark.parametrize("text", ["", "yesterday", "15", "-5m", "5 minutes", "2026-13-01"])
def test_what_is_no_time_is_told_how_to_write_one(text: str) -> None:
    with pytest.raises(Fatal, match="15m"):
        parse_moment(text, 0)


@given(at_s=st.integers(0, 4_000_000_000))
def test_a_time_reads_back(at_s: int) -> None:
    assert parse_moment(datetime.fromtimestamp(at_s, UTC).isoformat(), 0) == at_s * 1000


def test_a_place_reads_back_and_others_are_refused() -> None:
    assert str(parse_place(f"{REQUESTS}.dlq/0/7")) == f"{REQUESTS}.dlq/0/7"
    with pytest.raises(Fatal, match="TOPIC/PARTITION/OFFSET"):
        parse_place("7")


# --- how they read


def test_a_line_has_place_time_reason_stage_request_and_size() -> None:
    text = line(letter(offset=3))
    assert text.split() == [
        f"{REQUESTS}.dlq/0/3", "1970-01-01T00:01:00Z", "undecodable", "request_gate", "r-1", "2",
    ]  # fmt: skip


def test_a_page_shows_the_message_without_its_pixels() -> None:
    request = InferenceRequest(request_id="r-1", instruction="pick it up", images=[Image(data=b"x" * 50_000)])
    text = "\n".join(page(letter(dead(value=request.SerializeToString()))))
    assert "as InferenceRequest" in text
    assert '"instruction": "pick it up"' in text
    assert "missing_headers" not in text
    assert len(text) < 6000


def test_a_page_of_something_unreadable_is_hex() -> None:
    text = "\n".join(page(letter()))
    assert "  000000  ff 00" in text
    assert "\x1b" not in text


# --- what is sent again


def test_a_record_goes_back_to_its_own_partition_with_its_own_bytes_and_headers() -> None:
    found = letter(offset=3)
    assert again(found, CLUSTER) == Again(
        topic=REQUESTS,
        partition=2,
        key=b"arm-1",
        value=b"\xff\x00",
        headers=[("request_id", b"r-1"), ("x", b"\x1b[2J\xff"), (REPLAYED_FROM, f"{REQUESTS}.dlq/0/3".encode())],
    )


def test_a_cut_record_is_never_sent_again() -> None:
    found = again(letter(cut=12), CLUSTER)
    assert isinstance(found, Unfit)
    assert "12 bytes of its value were cut off" in found.why


def test_a_letter_that_does_not_say_what_died_is_not_sent_again() -> None:
    found = again(letter_of(Record(f"{REQUESTS}.dlq", 0, 0, None, b"x", 0, [])), CLUSTER)
    assert isinstance(found, Unfit)
    forged = [("__connect.errors.topic", b"vla.control.v1"), ("__connect.errors.partition", b"0")]
    headers = [*forged, ("__connect.errors.offset", b"0")]
    assert isinstance(again(letter_of(Record(f"{REQUESTS}.dlq", 0, 0, None, b"x", 0, headers)), CLUSTER), Unfit)


@pytest.mark.parametrize("partitions", [{}, {REQUESTS: 2}])
def test_a_partition_that_is_gone_is_not_replaced_by_another(partitions: dict[str, int]) -> None:
    found = again(letter(), Cluster(partitions=partitions, results_ends={}))
    assert isinstance(found, Unfit)
    assert "vlastream topics apply" in found.why


def test_a_completion_goes_where_its_request_lies() -> None:
    found = again(letter(dead(RESULTS, value=Completion(row_id="r").SerializeToString())), CLUSTER)
    assert isinstance(found, Again)
    assert (found.topic, found.partition) == (RESULTS, 2)


@pytest.mark.parametrize(("results_offset", "fit"), [(0, True), (99, True), (100, False), (2**62, False)])
def test_an_outcome_with_a_number_that_no_completion_has_would_swallow_others_and_stays(
    results_offset: int, fit: bool
) -> None:
    outcome = Outcome(row_id="r", results_offset=results_offset)
    found = again(letter(dead(OUTCOMES, value=outcome.SerializeToString())), CLUSTER)
    assert isinstance(found, Again) is fit


# --- what may go


def letters(*reasons: str) -> list[Letter]:
    return [letter(offset=offset, reason=reason) for offset, reason in enumerate(reasons, 5)]


def test_a_purge_ends_behind_the_last_letter_that_is_meant() -> None:
    plan = plan_purge(letters("a", "a", "b"), Selection(reasons=["a"]))
    assert {place: part.before for place, part in plan.parts.items()} == {(f"{REQUESTS}.dlq", 0): 7}
    assert (plan.matching, plan.others) == (2, 0)
    assert plan.only_matching().parts == plan.parts


def test_letters_that_are_not_meant_protect_those_behind_them() -> None:
    plan = plan_purge(letters("b", "a", "b", "a", "b"), Selection(reasons=["a"]))
    assert (plan.matching, plan.others) == (2, 2)
    assert plan.only_matching().parts == {}


@given(reasons=st.lists(st.sampled_from("ab"), max_size=12))
def test_a_purge_without_all_takes_exactly_what_is_meant_or_nothing(reasons: list[str]) -> None:
    found = letters(*reasons)
    selection = Selection(reasons=["a"])
    going = plan_purge(found, selection).only_matching()
    gone = [one for one in found if any(one.place.offset < part.before for part in going.parts.values())]
    assert all(map(selection.matches, gone))
    assert len(gone) in (0, reasons.count("a"))
