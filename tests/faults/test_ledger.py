"""The checks find what they are there to find."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.ledger import Answer, Decided, Ledger, Sent, broken_promises, longest_silence_s
from tests.faults.offsets import Commit, Flow, premature


def ledger(*answers: Answer, unheard: bool = False) -> Ledger:
    sent = Sent("r1", "arm", 1, ttl_s=2.0, unheard=unheard)
    return Ledger({"r1": sent}, list(answers))


def answer(**changes: Any) -> Answer:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "sent_s": 100.0,
        "received_s": 100.1,
        "status": 200,
        "code": "",
        "result_id": "x",
        "fresh": True,
        "age_s": 0.1,
        "final": True,
    }
    return Answer(**{**fields, **changes})


def decided(**changes: Any) -> Decided:
    fields: dict[str, Any] = {
        "request_id": "r1",
        "row_id": "row1",
        "robot_id": "arm",
        "step": 1,
        "code": "",
        "result_id": "x",
        "source": ("requests", 0, 1),
        "place": (0, 1),
    }
    return Decided(**{**fields, **changes})


def test_what_was_answered_as_it_was_decided_breaks_no_promise() -> None:
    retry = answer(fresh=False, sent_s=110.0, received_s=110.1)
    assert broken_promises(ledger(answer(), retry), [decided()]) == []


@pytest.mark.parametrize(
    ("kept", "outcomes", "said"),
    [
        (ledger(answer()), [], "has no outcome"),
        (ledger(), [decided()], "never got its outcome"),
        (ledger(answer(code="stopped", status=423, final=False)), [decided()], "never got its outcome"),
        (ledger(answer(result_id="y")), [decided()], "2 different outcomes"),
        (ledger(answer()), [decided(), decided(row_id="row2", code="expired")], "2 different outcomes"),
        (ledger(answer(age_s=2.1)), [decided()], "after its deadline"),
        (
            ledger(answer()),
            [decided(place=(0, 2)), decided(row_id="row2", request_id="r2", source=("requests", 0, 2), place=(0, 1))],
            "came after those",
        ),
    ],
)
def test_a_broken_promise_is_found(kept: Ledger, outcomes: list[Decided], said: str) -> None:
    assert any(said in text for text in broken_promises(kept, outcomes))


def test_who_does_not_listen_needs_an_outcome_only() -> None:
    assert broken_promises(ledger(unheard=True), [decided()]) == []


def test_silence_is_that_of_the_robot_that_waits_longest() -> None:
    answers = [answer(received_s=at) for at in (101.0, 103.0, 109.0)] + [answer(request_id="r2", received_s=105.0)]
    assert longest_silence_s(answers, {"r1": "arm", "r2": "other"}, 100.0, 110.0) == 6.0
    assert longest_silence_s(answers, {"r1": "arm"}, 100.0, 109.0) == 6.0


def test_a_commit_before_its_output_is_found() -> None:
    flow = Flow()
    for offset, at_s in ((0, 10.0), (1, 12.0), (2, 11.0), (1, 13.0)):
        flow.note("requests", 0, offset, at_s)
    assert premature([Commit(11.0, "requests", 0, 1), Commit(12.0, "requests", 0, 3)], flow) == []
    assert len(premature([Commit(11.5, "requests", 0, 3)], flow)) == 1
