"""What records become in the Parquet datasets, and what consent leaves out."""

from __future__ import annotations

import pytest

from runtime.errors import Poison
from schemas import headers as h
from schemas.messages import Claim, Image, ImageEncoding
from sinks.arrow_schemas import SCHEMAS
from sinks.lake_rows import observation_entry, outcome_entry
from sinks.store import Skip
from tests import factories as f


@pytest.mark.parametrize("dataset", list(SCHEMAS))
def test_every_field_of_a_dataset_is_documented(dataset: str) -> None:
    for field in SCHEMAS[dataset]:
        assert field.metadata[b"doc"], field.name


def test_an_observation_has_every_column_of_its_schema() -> None:
    request = f.inference_request(executed=f.matrix(1, 2))
    row = observation_entry(f.accepted_record(request, offset=9), f.DEPLOYMENT).row
    assert set(row) == set(SCHEMAS["observations"].names)
    assert row["images"][0]["data"] == f.jpeg()
    assert (row["state"], row["instruction"]) == ([0.5] * 8, f.INSTRUCTION)
    assert (row["executed_horizon"], row["executed_dim"], row["log_offset"]) == (1, 2, 9)


def test_an_outcome_has_every_column_of_its_schema() -> None:
    for outcome in (f.outcome(), f.outcome(rejection=f.rejection())):
        entry = outcome_entry(f.record(outcome.SerializeToString()))
        assert set(entry.row) == set(SCHEMAS["outcomes"].names)


def test_an_observation_is_told_from_its_repeat_by_its_source() -> None:
    entry = observation_entry(f.accepted_record(headers={h.SOURCE: "vla.requests.fleet-a.v1/3/17"}), f.DEPLOYMENT)
    assert (entry.series, entry.number) == ("vla.requests.fleet-a.v1/3", 17)


def test_an_outcome_is_told_from_its_repeat_by_its_completion() -> None:
    entry = outcome_entry(f.record(f.outcome(results_offset=5).SerializeToString()))
    assert entry.number == 5


def test_rows_are_cut_at_midnight_utc() -> None:
    value = f.outcome().SerializeToString()
    noon = outcome_entry(f.record(value, timestamp_ms=f.NOON_MS))
    midnight = outcome_entry(f.record(value, timestamp_ms=f.NOON_MS + 12 * 3_600_000))
    assert (noon.cut, midnight.cut) == ("2026-11-23", "2026-11-24")


@pytest.mark.parametrize("tier", ["none", "", "everything"])
def test_without_consent_nothing_of_an_observation_is_kept(tier: str) -> None:
    with pytest.raises(Skip, match="consent"):
        observation_entry(f.accepted_record(headers={h.CONSENT_TIER: tier}), f.DEPLOYMENT)


def test_with_consent_to_metadata_an_observation_keeps_no_pixels() -> None:
    claim = Image(
        camera="wrist", encoding=ImageEncoding.IMAGE_ENCODING_PNG, claim=Claim(uri="s3://x", sha256=b"1" * 32)
    )
    request = f.inference_request()
    request.images.append(claim)
    row = observation_entry(f.accepted_record(request, headers={h.CONSENT_TIER: "metadata"}), f.DEPLOYMENT).row
    assert [(image["data"], image["claim_uri"]) for image in row["images"]] == [(None, None), (None, None)]
    assert row["instruction"] == f.INSTRUCTION
    full = observation_entry(f.accepted_record(request), f.DEPLOYMENT).row
    assert full["images"][1]["claim_uri"] == "s3://x"


@pytest.mark.parametrize("tier", ["none", "", "everything"])
def test_without_consent_an_outcome_keeps_operational_columns_only(tier: str) -> None:
    outcome = f.outcome(request=f.request_summary(consent_tier=tier, executed=f.matrix()))
    row = outcome_entry(f.record(outcome.SerializeToString())).row
    assert row["instruction"] is row["state"] is row["executed"] is row["executed_dim"] is None
    assert (row["status"], row["row_id"]) == ("success", outcome.row_id)


@pytest.mark.parametrize("missing", [h.ROW_ID, h.SOURCE, h.CUSTOMER_ID, h.REQUESTED_AT_MS])
def test_a_record_that_the_gate_did_not_write_is_poison(missing: str) -> None:
    headers = {name: value for name, value in f.accepted_headers().items() if name != missing}
    record = f.record(f.inference_request().SerializeToString(), headers=headers)
    with pytest.raises(Poison):
        observation_entry(record, f.DEPLOYMENT)


def test_a_value_that_is_no_request_is_poison() -> None:
    record = f.record(b"\xff\xff\xff", headers=f.accepted_headers())
    with pytest.raises(Poison):
        observation_entry(record, f.DEPLOYMENT)
