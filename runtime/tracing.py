"""Traces across Kafka: one request is one trace, each stage a span whose parent came in the record's `traceparent`.

W3C Trace Context, exported by OTLP over HTTP where OTEL_EXPORTER_OTLP_ENDPOINT is set (extra `otel`). Without it a
stage hands on the `traceparent` that it got.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from runtime.errors import Fatal
from runtime.kafka import Record
from runtime.lifecycle import Deadline
from runtime.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span as OtelSpan

#: Spans are sent so often at least.
_EXPORT_INTERVAL_MS = 1000
_EXPORT_TIMEOUT_S = 3.0

Attributes = Mapping[str, str | int | float | bool]


class Kind(StrEnum):
    """The role of a span, as OpenTelemetry names it."""

    SERVER = "SERVER"
    CONSUMER = "CONSUMER"
    INTERNAL = "INTERNAL"


class Span(Protocol):
    """A stage's work on one request, begun."""

    @property
    def traceparent(self) -> str:
        """What the next stage gets; empty where there is nothing to hand on."""
        ...

    def end(self, *, end_us: int | None = None, error: str = "", attributes: Attributes | None = None) -> None:
        """end_us: Unix epoch in microseconds; None: now. error: why the request ended here, if it did."""
        ...


class Tracing(Protocol):
    """Makes spans. Thread-safe; neither method blocks on the network."""

    def start(
        self,
        name: str,
        *,
        parent: str,
        start_us: int,
        kind: Kind = Kind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> Span:
        """parent: a traceparent; anything else begins a new trace. start_us: Unix epoch in microseconds."""
        ...


class _NoSpan:
    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def end(self, *, end_us: int | None = None, error: str = "", attributes: Attributes | None = None) -> None:
        """Nobody listens."""


class NoTracing:
    """Hands `traceparent` on and records nothing."""

    def start(
        self,
        name: str,
        *,
        parent: str,
        start_us: int,
        kind: Kind = Kind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> Span:
        return _NoSpan(parent)

    def close(self, deadline: Deadline) -> None:
        """Nothing is held."""


class _Span:
    def __init__(self, span: OtelSpan, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def end(self, *, end_us: int | None = None, error: str = "", attributes: Attributes | None = None) -> None:
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attributes(dict(attributes or {}))
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(end_time=None if end_us is None else end_us * 1000)


class OtelTracing:
    """Spans of OpenTelemetry's SDK. No ambient context: every parent is named."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("vlastream")
        self._propagator = TraceContextTextMapPropagator()

    def start(
        self,
        name: str,
        *,
        parent: str,
        start_us: int,
        kind: Kind = Kind.INTERNAL,
        attributes: Attributes | None = None,
    ) -> Span:
        from opentelemetry.context import Context
        from opentelemetry.trace import SpanKind, set_span_in_context

        span = self._tracer.start_span(
            name,
            context=self._propagator.extract({"traceparent": parent}, context=Context()),
            kind=SpanKind[kind],
            attributes=dict(attributes or {}),
            start_time=start_us * 1000,
        )
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=set_span_in_context(span, Context()))
        return _Span(span, carrier["traceparent"])

    def close(self, deadline: Deadline) -> None:
        """Send what is left, as far as the time goes."""
        self._provider.force_flush(int(min(deadline.remaining_s / 2, _EXPORT_TIMEOUT_S) * 1000))
        self._provider.shutdown()


def log_fields(traceparent: str) -> dict[str, str]:
    """`trace_id` for a log line, so that lines and spans of a request are found by each other; empty without one."""
    parts = traceparent.split("-")
    return {"trace_id": parts[1]} if len(parts) == 4 else {}


def record_attributes(record: Record) -> Attributes:
    """What a consumer's span says of its record (OpenTelemetry's conventions for Kafka)."""
    return {
        "messaging.system": "kafka",
        "messaging.destination.name": record.topic,
        "messaging.destination.partition.id": str(record.partition),
        "messaging.kafka.offset": record.offset,
    }


def build_tracing(settings: Settings, role: str) -> NoTracing | OtelTracing:
    """The tracing of this process. Raises Fatal where it is asked for and not installed.

    OTEL_TRACES_SAMPLER_ARG is the share of requests that are traced; who sends a sampled `traceparent` is always.
    """
    if not settings.otel_exporter_otlp_endpoint:
        return NoTracing()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ModuleNotFoundError as error:
        raise Fatal(
            f"{error.name} is not installed: install vlastream[otel], or unset OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from error
    named = {"service.name": f"vlastream-{role}", "service.instance.id": f"{role}-{settings.role_instance}"}
    provider = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.otel_traces_sampler_arg)),
        resource=Resource.create({**named, "deployment.environment.name": settings.environment}),
        shutdown_on_exit=False,
    )
    endpoint = f"{settings.otel_exporter_otlp_endpoint.rstrip('/')}/v1/traces"
    exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_TIMEOUT_S)
    provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EXPORT_INTERVAL_MS))
    return OtelTracing(provider)
