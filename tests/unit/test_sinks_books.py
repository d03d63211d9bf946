"""Counting requests by the rule of the gate, and what the books say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runtime.kafka import Record
from schemas.messages import InferenceRequest
from schemas.topics import REQUESTS
from sinks.books import Books, OutcomeCount, RequestCount
from tests import factories as f

WINDOW_MS = 300_000


def request_record(request: InferenceRequest, *, at_ms: int = 0) -> Record:
    return f.record(request.SerializeToString(), topic=REQUESTS, timestamp_ms=f.NOON_MS + at_ms)


def count(*records: tuple[Record, str | None]) -> RequestCount:
    counted = RequestCount(WINDOW_MS)
    for record, customer_id in records:
        counted.add(record, customer_id)
    return counted


def test_the_same_request_sent_again_is_one_request() -> None:
    request = f.inference_request()
    again = InferenceRequest()
    again.CopyFrom(request)
    again.ttl_ms = 500
    counted = count((request_record(request), "a"), (request_record(again, at_ms=900), "a"))
    assert (counted.distinct, counted.retries) == (1, 1)


def test_an_id_reused_with_other_content_is_a_request_each_time() -> None:
    first = f.inference_request(request_id="one")
    other = f.inference_request(request_id="one", step=9)
    counted = count(*[(request_record(r), "a") for r in (first, other, other, first)])
    assert (counted.distinct, counted.retries) == (3, 1)


def test_an_id_used_again_after_the_window_is_another_request() -> None:
    request = f.inference_request()
    counted = count((request_record(request), "a"), (request_record(request, at_ms=WINDOW_MS + 1), "a"))
    assert counted.distinct == 2


def test_two_customers_may_use_one_id() -> None:
    request = f.inference_request()
    assert count((request_record(request), "a"), (request_record(request), "b")).distinct == 2


@pytest.mark.parametrize("value", [b"", b"\xff\xff\xff", None, b"\x88\x7d\x01"])
def test_what_names_no_request_is_counted_apart(value: bytes | None) -> None:
    counted = count((f.record(value, topic=REQUESTS), "a"))
    assert (counted.distinct, counted.undecodable) == (0, 1)


def test_a_request_of_no_customer_is_counted_apart() -> None:
    assert count((request_record(f.inference_request()), None)).undecodable == 1


def test_an_outcome_written_twice_is_one_outcome() -> None:
    counted = OutcomeCount()
    record = f.record(f.outcome().SerializeToString())
    for found in (record, record, f.record(b"\xff")):
        counted.add(found)
    assert (counted.distinct, counted.records, counted.unreadable) == (1, 2, 1)
    assert counted.codes == {"ok": 1}


EVEN = Books(requests=3, outcomes=3, postgres_rows=3, parquet_rows=3, outcomes_by_code={"ok": 2, "duplicate": 1})


def test_equal_numbers_balance_whatever_is_counted_apart() -> None:
    books = replace(EVEN, retries=4, undecodable=2, repeated_outcomes=1)
    assert books.balanced
    assert "The books balance." in books.explain()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outcomes": 2}, "1 outcomes too few"),
        ({"postgres_rows": 1}, "2 Postgres rows too few"),
        ({"parquet_rows": 4}, "1 Parquet rows too many"),
        ({"repeated_parquet_rows": 2}, "2 repeated Parquet rows too many"),
    ],
)
def test_any_difference_is_named(change: dict[str, Any], said: str) -> None:
    books = replace(EVEN, **change)
    assert not books.balanced
    assert said in books.explain()
