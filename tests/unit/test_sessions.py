"""How many sessions there may be, of one customer and in all."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from ingest_api.problems import Problem
from ingest_api.sessions import Sessions
from runtime.metrics import Metrics


def test_no_customer_takes_all_sessions_and_the_whole_is_bounded() -> None:
    sessions = Sessions(18, Metrics())
    with ExitStack() as greedy:
        for _ in range(16):
            greedy.enter_context(sessions.open("vlastream", "greedy"))
        with pytest.raises(Problem) as share:
            greedy.enter_context(sessions.open("vlastream", "greedy"))
        assert share.value.status == 429
        with sessions.open("vlastream", "another") as session, sessions.open("vlastream", "a third"):
            assert sessions.of("another") == [session]
            with pytest.raises(Problem) as full:
                greedy.enter_context(sessions.open("vlastream", "a fourth"))
            assert full.value.status == 503
    assert not sessions.of("greedy")
