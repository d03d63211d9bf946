"""No field beyond the tier ever comes to rest in the lake; test_operations_page.py looks at Postgres."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.consent import TIERS, ConsentList, next_consent
from schemas.messages import Consent
from sinks.arrow_schemas import SCHEMAS
from tests.lake_case import LakeFolder, actions
from tests.sink_case import consents

SECRET = "anna's secret instruction"
STATE = (0.123456,) * 8
EXECUTED = actions(2, 0.654)

tier = st.sampled_from(TIERS)


def everything(folder: LakeFolder) -> dict[str, list[dict[str, Any]]]:
    return {dataset: list(folder.rows(dataset)) for dataset in SCHEMAS}


@settings(max_examples=25, deadline=None)
@given(stamped=tier, told=tier, level=st.sampled_from(["none", "partial", "full"]))
def test_no_field_beyond_the_tier_reaches_the_lake(stamped: str, told: str, level: Any) -> None:
    """stamped: by the gate on the request; told: what holds when feedback and the episode's end arrive."""
    with tempfile.TemporaryDirectory() as name:
        allowed = consents(level, **{"customer-1": {"tier": told, "version": 1}})
        folder = LakeFolder(Path(name), allowed)
        row = folder.ask(step=1, tier=stamped, instruction=SECRET, state=STATE, executed=EXECUTED)
        folder.correct(row, actions(1))
        folder.end(success=True)
        folder.write()
        kept = everything(folder)
    assert len(kept["outcomes"]) == 1
    outcome = kept["outcomes"][0]
    assert (outcome["instruction"] is None) == (stamped == "none")
    assert (outcome["state"] is None) == (stamped == "none")
    assert (outcome["executed"] is None) == (stamped == "none")
    assert len(kept["observations"]) == (stamped != "none")
    for observation in kept["observations"]:
        assert (observation["images"][0]["data"] is not None) == (stamped == "full")
    assert len(kept["feedback"]) == len(kept["episodes"]) == (told != "none")
    if stamped == "none":
        assert SECRET not in str(kept)
        assert "0.12345" not in str(kept)


@given(
    st.lists(st.tuples(tier, st.integers(0, 5000), st.booleans()), max_size=8),
    st.integers(1, 9000),
)
def test_the_newest_word_holds_until_it_expires(words: list[tuple[Any, int, bool]], now_ms: int) -> None:
    known = ConsentList("none", "none")
    consent: Consent | None = None
    for number, (word, expires_at_ms, erase) in enumerate(words):
        consent = next_consent(
            consent,
            "customer-1",
            tier=None if erase else word,
            expires_at_ms=expires_at_ms,
            erase=erase,
            who="somebody",
            origin="test",
            now_ms=1000 + number,
        )
        assert consent.version == number + 1
        known.update(b"customer-1", consent.SerializeToString(), 0)
    said = [(word, expires) for word, expires, erase in words if not erase]
    expected = "none"
    if said and not 0 < said[-1][1] <= now_ms:
        expected = said[-1][0]
    assert known.tier("customer-1", now_ms) == expected
    erased = [1000 + number for number, (_, _, erase) in enumerate(words) if erase]
    assert known.is_erased("customer-1", 1) == bool(erased)
    assert not known.is_erased("customer-1", max(erased, default=0) + 1)
