"""What is written is what is read: one request and one outcome, whichever way they travel."""

from __future__ import annotations

import dataclasses
import string

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from ingest_api.answers import chunk_document
from ingest_api.request_body import InferenceBody, build_request, parse_body
from robot_client.chunk import chunk_from_json, chunk_from_outcome
from robot_client.request_json import request_json
from schemas import headers as h
from schemas.messages import (
    ActionChunk,
    ActionMatrix,
    Image,
    ImageEncoding,
    InferenceRequest,
    InferenceResult,
    Options,
    Outcome,
    RequestSummary,
    SafetyMode,
    SafetyReport,
)
from sinks.arrow_schemas import OBSERVATIONS, SCHEMAS
from sinks.lake_rows import observation_entry
from sinks.marks import Mark, Partition
from sinks.parquet_files import MARK_KEY, encode
from tests.factories import accepted_record

_TEXT = st.text(max_size=20)
_NAMES = st.text(string.ascii_letters + string.digits + "._:-", min_size=1, max_size=16)
_FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
_MODES = st.sampled_from([SafetyMode.SAFETY_MODE_REJECT, SafetyMode.SAFETY_MODE_CLAMP, SafetyMode.SAFETY_MODE_MONITOR])


@st.composite
def matrices(draw: st.DrawFn) -> ActionMatrix:
    horizon, dim = draw(st.integers(1, 6)), draw(st.integers(1, 8))
    values = draw(st.lists(_FLOATS, min_size=horizon * dim, max_size=horizon * dim))
    return ActionMatrix(horizon=horizon, dim=dim, values=values)


_IMAGES = st.builds(
    Image,
    camera=_NAMES,
    encoding=st.sampled_from([ImageEncoding.IMAGE_ENCODING_JPEG, ImageEncoding.IMAGE_ENCODING_PNG]),
    data=st.binary(max_size=64),
)
_REQUESTS = st.builds(
    InferenceRequest,
    request_id=st.uuids().map(str),
    robot_id=_NAMES,
    robot_type=_NAMES,
    model=_NAMES,
    instruction=_TEXT,
    images=st.lists(_IMAGES, min_size=1, max_size=3),
    state=st.lists(_FLOATS, max_size=8),
    episode_id=_TEXT,
    step=st.integers(0, 2**64 - 1),
    captured_at_ms=st.integers(0, 2**63 - 1),
    ttl_ms=st.integers(1, 60_000),
    executed=st.none() | matrices(),
    options=st.builds(
        Options, latest_only=st.booleans(), seed=st.none() | st.integers(0, 2**63 - 1), safety_mode=st.none() | _MODES
    ),
)


@given(_REQUESTS)
def test_a_request_over_rest_becomes_the_message_that_kafka_would_have_carried(request: InferenceRequest) -> None:
    body = parse_body(orjson.dumps(request_json(request)), InferenceBody)
    built = build_request(
        body, request_id=body.request_id or "", model=body.model or "", first_camera="base", default_ttl_ms=1
    )
    # Options that say nothing and no options are the same to every reader.
    assert built.options == request.options
    built.options.CopyFrom(request.options)
    assert built == request


@given(
    actions=matrices(),
    request_id=_TEXT,
    model=_NAMES,
    revision=_TEXT,
    rate=st.floats(0, 1000),
    score=st.floats(0, 1),
    mode=_MODES,
    modified=st.booleans(),
    replayed=st.booleans(),
    expired=st.booleans(),
    batch=st.integers(0, 2**31 - 1),
)
def test_an_outcome_is_the_same_chunk_over_rest_and_over_kafka(
    actions: ActionMatrix,
    request_id: str,
    model: str,
    revision: str,
    rate: float,
    score: float,
    mode: SafetyMode.ValueType,
    modified: bool,
    replayed: bool,
    expired: bool,
    batch: int,
) -> None:
    outcome = Outcome(
        request=RequestSummary(request_id=request_id, model=model),
        chunk=ActionChunk(
            actions=actions,
            names=[f"a{i}" for i in range(actions.dim)],
            units=["m"] * actions.dim,
            control_rate_hz=rate,
            safety=SafetyReport(score=score, mode=mode, modified=modified, checks={"range": score}),
            result=InferenceResult(result_id="result", model_revision=revision, batch_size=batch),
        ),
    )
    headers = {h.REPLAYED: str(replayed).lower(), h.EXPIRED: str(expired).lower(), h.REQUEST_ID: request_id}
    over_kafka = chunk_from_outcome(Outcome.FromString(outcome.SerializeToString()), headers)
    document = chunk_document(outcome, timings={}, replayed=replayed, expired=expired)
    over_rest = chunk_from_json(orjson.loads(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)))
    np.testing.assert_array_equal(over_rest.actions, over_kafka.actions)
    for name in (field.name for field in dataclasses.fields(over_rest)):
        if name not in ("actions", "timings_ms"):
            assert getattr(over_rest, name) == getattr(over_kafka, name), name


@given(
    st.dictionaries(
        st.text(string.ascii_lowercase + "_-", min_size=1, max_size=12),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=64) | st.integers(0, 2**62),
        max_size=8,
    )
)
def test_printable_headers_read_back_as_they_were_written(written: dict[str, str | int]) -> None:
    assert h.decode(h.encode(written)) == {name: str(value) for name, value in written.items()}


@given(st.lists(_REQUESTS, min_size=1, max_size=5), st.integers(0, 2**40), st.integers(0, 2**40))
def test_observations_read_back_from_parquet_as_they_were_asked(
    requests: list[InferenceRequest], start: int, seen: int
) -> None:
    entries = [
        observation_entry(accepted_record(request, offset=start + i), "test-model-a")
        for i, request in enumerate(requests)
    ]
    mark = Mark(start + len(entries), {"vla.requests.v1/0": seen})
    data = encode([entry.row for entry in entries], SCHEMAS[OBSERVATIONS], Partition("accepted", 0), start, mark)
    table = pq.read_table(pa.BufferReader(data))
    for row, request in zip(table.to_pylist(), requests, strict=True):
        assert [image["data"] for image in row["images"]] == [image.data for image in request.images]
        assert (row["request_id"], row["instruction"], row["step"]) == (
            request.request_id,
            request.instruction,
            request.step,
        )
        assert row["state"] == list(request.state)
        assert (row["executed"] or []) == list(request.executed.values)
    footer = orjson.loads(table.schema.metadata[MARK_KEY])
    assert Mark(footer["next_offset"], footer["seen"]) == mark
