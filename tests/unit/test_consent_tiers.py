"""No field beyond the tier ever comes to rest in the lake; test_operations_page.py looks at Postgres."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_consumers.embedder.records import read_item
from runtime.consent import TIERS, ConsentList, next_consent
from schemas import headers as h
from schemas.messages import Consent
from schemas.topics import EMBEDDINGS, FEEDBACK, OUTCOMES
from sinks.arrow_schemas import SCHEMAS
from sinks.data_store import DataRow
from sinks.postgres import OutcomeRows
from sinks.store import Skip
from tests import factories as f
from tests.lake_case import LakeFolder, actions
from tests.sink_case import consents, postgres_decoder

SECRET = "anna's secret instruction"
STATE = (0.123456,) * 8
EXECUTED = actions(2, 0.654)

tier = st.sampled_from(TIERS)
levels = st.sampled_from(["none", "partial", "full"])
anything = st.sampled_from([*TIERS, "", "all of it"])


def everything(folder: LakeFolder) -> dict[str, list[dict[str, Any]]]:
    return {dataset: list(folder.rows(dataset)) for dataset in SCHEMAS}


@settings(max_examples=25, deadline=None)
@given(stamped=tier, told=tier, level=levels)
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


@settings(max_examples=50, deadline=None)
@given(stamped=st.sampled_from([*TIERS, "", "all of it"]), told=tier, level=levels)
def test_no_field_beyond_the_tier_becomes_a_row_of_postgres(stamped: str, told: str, level: Any) -> None:
    """A word that this version does not know counts as none."""
    allowed = consents(level, **{"customer-1": {"tier": told, "version": 1}})
    decode = postgres_decoder(allowed)
    may_keep = stamped in ("metadata", "full")
    with tempfile.TemporaryDirectory() as name:
        folder = LakeFolder(Path(name), allowed)
        row = folder.ask(step=1, tier=stamped, instruction=SECRET, state=STATE, executed=EXECUTED)
        folder.embed(row, instruction=[1.0] + [0.0] * 383, image=[1.0] + [0.0] * 511)
        folder.correct(row, actions(1, 0.777))
    for record in folder.appended:
        if record.topic == OUTCOMES:
            found = decode(record).row
            assert isinstance(found, OutcomeRows)
            assert (found.inference["instruction"] is not None) == may_keep
            assert (found.inference["image_shape"] is not None) == may_keep
            assert may_keep or SECRET not in str(found)
        elif record.topic == EMBEDDINGS and not may_keep:
            with pytest.raises(Skip):
                decode(record)
        elif record.topic == FEEDBACK:
            said = decode(record).row
            assert isinstance(said, DataRow)
            assert (said.row["corrected_action"] is not None) == (told != "none")


@given(stamped=anything)
def test_nothing_that_is_not_allowed_comes_as_far_as_the_cache(stamped: str) -> None:
    """What the embedder reads is all that it can look up, compute or remember."""
    record = f.accepted_record(headers={h.CONSENT_TIER: stamped})
    item = read_item(record, consents(), lambda: None)
    assert (item is not None) == (stamped in ("metadata", "full"))


def test_an_erasure_holds_whatever_is_said_after_it_by_somebody_who_did_not_know_of_it() -> None:
    known = consents(mine={"tier": "full", "version": 1, "erased_before_ms": 500})
    known.update(b"mine", Consent(customer_id="mine", tier="metadata", version=1).SerializeToString(), 0)
    assert known.tier("mine", 1000) == "metadata"
    assert known.is_erased("mine", 500)
    assert not known.is_erased("mine", 501)


def test_what_was_just_published_is_known_unless_the_log_has_newer() -> None:
    known = consents(mine={"tier": "full", "version": 3})
    known.published(Consent(customer_id="mine", tier="none", version=3))
    assert known.tier("mine", 1000) == "full"
    known.published(Consent(customer_id="mine", tier="none", version=4))
    assert known.tier("mine", 1000) == "none"


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
