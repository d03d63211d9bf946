"""Spans hang together by the traceparent that one stage hands to the next."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gpu_consumers.completions import completion_headers, rejected_completion
from gpu_consumers.jobs import new_job, read_envelope, read_request
from gpu_consumers.traces import trace_of
from runtime.errors import Unavailable
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.settings import Settings
from runtime.tracing import Kind, NoTracing, OtelTracing, build_tracing, log_fields
from schemas import headers as h
from schemas.codes import Code
from tests.accepted import headers_of, request
from tests.unit.api_case import Api, body

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Recorded:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = OtelTracing(provider)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self._exporter.get_finished_spans()}


@pytest.fixture
def recorded() -> Iterator[Recorded]:
    made = Recorded()
    yield made
    made.tracing.close(Deadline(1.0))


def test_without_tracing_a_traceparent_is_handed_on_as_it_came() -> None:
    span = NoTracing().start("x", parent=PARENT, start_us=1)
    span.end(error="whatever")
    assert span.traceparent == PARENT
    assert isinstance(build_tracing(Settings(_env_file=None), "api"), NoTracing)


def test_a_span_continues_the_trace_of_its_parent_and_has_the_times_that_it_was_given(recorded: Recorded) -> None:
    first = recorded.tracing.start("first", parent=PARENT, start_us=5, kind=Kind.CONSUMER)
    second = recorded.tracing.start("second", parent=first.traceparent, start_us=6)
    second.end(end_us=9, error="expired", attributes={"n": 1})
    first.end(end_us=10)
    spans = recorded.spans
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {PARENT.split("-")[1]}
    parent = spans["second"].parent
    assert parent is not None
    assert first.traceparent.split("-")[2] == f"{parent.span_id:016x}"
    assert (spans["second"].start_time, spans["second"].end_time) == (6_000, 9_000)
    assert spans["second"].status.description == "expired"


def test_log_lines_name_the_trace_that_their_request_belongs_to() -> None:
    assert log_fields(PARENT) == {"trace_id": "0af7651916cd43dd8448eb211c80319c"}
    assert log_fields("") == {}


@pytest.mark.parametrize("parent", ["", "nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"])
def test_a_parent_that_is_none_begins_a_new_trace(recorded: Recorded, parent: str) -> None:
    recorded.tracing.start("alone", parent=parent, start_us=1).end()
    assert recorded.spans["alone"].parent is None


def test_a_request_that_never_saw_a_device_has_a_queue_and_no_inference(recorded: Recorded) -> None:
    asked = request()
    headers = h.encode(headers_of(asked))
    record = Record("vla.accepted.a.v1", 0, 0, b"arm", asked.SerializeToString(), 0, headers)
    job = new_job(read_envelope(record), read_request(record), lambda: None, received_s=0.0, now_s=1.0)
    completion = rejected_completion(job, Code.EXPIRED, "too late")
    completion.times.worker_published_us = 2_000_000
    job.traceparent = trace_of(recorded.tracing, job, completion)
    assert set(recorded.spans) == {"queue"}
    assert recorded.spans["queue"].status.description == "expired"
    assert dict(completion_headers(job, now_s=2.0))[h.TRACEPARENT].decode() == job.traceparent


async def test_the_api_begins_a_trace_where_the_robot_has_none_and_sends_it_on(recorded: Recorded) -> None:
    api = Api(tracing=recorded.tracing)
    assert (await api.post(body())).status_code == 200
    span = recorded.spans["request"]
    (question,) = api.gateway.asked
    assert question.traceparent.split("-")[1] == f"{span.context.trace_id:032x}"
    assert span.attributes is not None
    assert span.attributes["vlastream.replayed"] is False


async def test_a_refusal_by_the_api_ends_the_span_with_its_code(recorded: Recorded) -> None:
    api = Api(tracing=recorded.tracing)
    api.gateway.refuses = Unavailable("away")
    assert (await api.post(body())).status_code == 503
    assert recorded.spans["request"].status.description == "unavailable"
