"""Every metric of every role. Base units in names; no label takes a robot, a request or free text as its value.

The nine names of the operator's checklist come first. A request is counted once across all processes: by
the API for what it answered, by the gate for robots that produce to Kafka themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_LATENCY_S = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
_SCORE = (0.0, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

CONTENT_TYPE = CONTENT_TYPE_LATEST


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One line of the catalogue, docs/metrics.md."""

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str


@dataclass(frozen=True, slots=True)
class Section:
    """Families that belong together. source: who exports them."""

    title: str
    source: str
    families: list[Family] = field(default_factory=list)


class Metrics:
    """One registry with all families; a role uses those that it has something to say about."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        #: All families in the order of this file.
        self.catalogue: list[Section] = []
        r = self.registry
        # CPU, memory, open files and the start of this process, by their usual names.
        ProcessCollector(registry=r)

        def section(title: str, source: str) -> None:
            self.catalogue.append(Section(title, source))

        def listed(name: str, kind: str, labels: tuple[str, ...], text: str) -> None:
            self.catalogue[-1].families.append(Family(name=name, kind=kind, labels=labels, meaning=text))

        def counter(name: str, text: str, *labels: str) -> Counter:
            listed(name, "counter", labels, text)
            return Counter(name, text, labels, registry=r)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            listed(name, "gauge", labels, text)
            return Gauge(name, text, labels, registry=r)

        def histogram(name: str, text: str, *labels: str, buckets: tuple[float, ...] = _LATENCY_S) -> Histogram:
            listed(name, "histogram", labels, text)
            return Histogram(name, text, labels, registry=r, buckets=buckets)

        section(
            "The operator's checklist",
            "API, for direct producers the gate; a GPU worker its own queue and GPU",
        )
        self.inference_requests = counter(
            "vla_inference_requests_total", "Requests that ended, by how", "model", "robot_type", "status"
        )
        self.inference_duration = histogram(
            "vla_inference_duration_seconds", "From the request's append to its answer", "model"
        )
        self.gpu_utilization = gauge("vla_gpu_utilization_percent", "Busy share of a GPU, 0-100", "worker", "device")
        self.gpu_memory_utilization = gauge(
            "vla_gpu_memory_utilization_percent", "Used share of a GPU's memory, 0-100", "worker", "device"
        )
        self.gpu_memory_used = gauge("vla_gpu_memory_used_bytes", "Used memory of a GPU", "worker", "device")
        self.gpu_memory_total = gauge("vla_gpu_memory_total_bytes", "Memory of a GPU", "worker", "device")
        self.gpu_temperature = gauge("vla_gpu_temperature_celsius", "Temperature of a GPU", "worker", "device")
        self.gpu_power = gauge("vla_gpu_power_watts", "Power that a GPU draws", "worker", "device")
        self.gpu_throttled = gauge("vla_gpu_throttled", "1 while this slows a GPU down", "worker", "device", "reason")
        self.gpu_memory_per_inference = gauge(
            "vla_gpu_memory_per_inference_bytes", "Peak of the last batch over its size", "worker", "device"
        )
        self.gpu_faults = counter("vla_gpu_faults_total", "Times that a GPU left its group", "worker", "device")
        self.gpu_worker_restarts = counter(
            "vla_gpu_worker_restarts_total", "Workers that ended and were started again", "device", "status"
        )
        self.safety_checks = counter("vla_safety_checks_total", "Chunks checked by the action gate", "model", "passed")
        self.safety_rejections = counter(
            "vla_safety_rejections_total", "Chunks refused by the action gate, by worst check", "model", "check"
        )
        self.validation_failures = counter(
            "vla_validation_failures_total", "Requests refused by the request gate", "field", "reason"
        )
        self.queue_depth = gauge("vla_queue_depth", "Requests that wait for a device", "deployment")

        section("The pipeline", "every role that reads or writes Kafka")
        self.stage_duration = histogram("vla_stage_duration_seconds", "Time in one stage", "stage")
        self.records_consumed = counter("vla_records_consumed_total", "Records read", "topic")
        self.records_produced = counter("vla_records_produced_total", "Records acknowledged by the broker", "topic")
        self.produce_failures = counter("vla_produce_failures_total", "Records that the broker did not take", "topic")
        self.produce_duration = histogram("vla_produce_duration_seconds", "From produce to acknowledgement", "topic")
        self.consumer_lag = gauge("vla_consumer_lag", "Records behind the end of the partition", "topic", "partition")
        self.dead_letters = counter("vla_dead_letters_total", "Records sent to a dead letter topic", "topic", "reason")
        self.rebalances = counter("vla_rebalances_total", "Partition assignments and revocations", "kind")
        self.retries = counter("vla_retries_total", "Attempts repeated in place", "stage", "reason")

        section("Consumer groups, as the broker has them", "API")
        self.deployment_lag = gauge(
            "vla_deployment_lag", "Accepted requests that the workers of a deployment have not finished", "deployment"
        )
        self.deployment_oldest_age = gauge(
            "vla_deployment_oldest_age_seconds",
            "Since the append of the oldest of them; 0 without one, absent while not known",
            "deployment",
        )
        self.group_lag = gauge("vla_group_lag", "Records that a consumer group has not finished", "group")
        self.group_oldest_age = gauge(
            "vla_group_oldest_age_seconds",
            "Since the append of the oldest of them; 0 without one, absent while not known",
            "group",
        )

        section("The gate", "gate")
        self.gate_decisions = counter("vla_gate_decisions_total", "Requests by what the request agent did", "decision")
        self.gate_decoded = counter("vla_gate_distinct_requests_total", "Distinct requests decoded by the gate")
        self.outcomes = counter("vla_outcomes_total", "Outcomes written, by code", "code")
        self.completions_dropped = counter(
            "vla_completions_dropped_total", "Completions that came after the first one", "reason"
        )
        self.replays = counter("vla_replays_total", "Retries answered with the first outcome", "expired")
        self.gate_records = gauge("vla_gate_records", "Requests held in the gate's table")
        self.offset_gaps = counter("vla_offset_gaps_total", "Gaps in a partition's offsets seen by an agent")
        self.safety_score = histogram("vla_safety_score", "Safety score of checked chunks", "model", buckets=_SCORE)

        section("The API", "API")
        self.http_requests = counter("vla_http_requests_total", "HTTP requests", "route", "method", "status")
        self.http_duration = histogram("vla_http_request_duration_seconds", "HTTP request to response", "route")
        self.connections_closed = counter(
            "vla_connections_closed_total", "Connections closed for want of room (MAX_CONNECTIONS)", "reason"
        )
        self.replies_late = counter("vla_late_replies_total", "Replies that nobody waited for any more")
        self.requests_waiting = gauge("vla_requests_waiting", "Requests of this API process that wait for a reply")
        self.requests_in_flight = gauge(
            "vla_requests_in_flight", "Requests of this API process between admission and answer"
        )
        self.request_bytes_held = gauge(
            "vla_request_bytes_held", "Bytes of bodies that come in and of records that the log does not have yet"
        )
        self.admission_refusals = counter(
            "vla_admission_refusals_total", "Requests that found no room, by whose limit it was", "reason"
        )
        self.refused_before_produce = counter(
            "vla_refused_before_produce_total", "Requests that never reached the log", "code"
        )
        self.stream_sessions = gauge("vla_stream_sessions", "Open WebSocket sessions", "protocol")
        self.key_lookups = counter("vla_key_lookups_total", "API key lookups by what answered", "source")

        section("Customers", "API and gate")
        self.limit_refusals = counter("vla_limit_refusals_total", "Requests over a customer's limit, by which", "limit")
        self.limits_unchecked = counter(
            "vla_limits_unchecked_total", "Questions to Valkey about a limit that it did not answer: all let through"
        )
        self.key_refusals = counter("vla_key_refusals_total", "Keys and tokens that were refused, by why", "reason")

        section("The GPU workers", "GPU worker; `vla_workers_live` also API")
        self.batch_size = histogram("vla_batch_size", "Requests in a batch", "deployment", buckets=_BATCH)
        self.infer_duration = histogram("vla_device_duration_seconds", "Time of one batch on the device", "deployment")
        self.queue_wait = histogram("vla_queue_wait_seconds", "From arrival at the worker to its batch", "deployment")
        self.deadline_drops = counter("vla_deadline_drops_total", "Requests dropped after their deadline", "stage")
        self.superseded = counter("vla_superseded_total", "Requests superseded by a newer observation", "deployment")
        self.workers_live = gauge("vla_workers_live", "Live GPU workers", "deployment")
        self.model_loaded = gauge("vla_model_loaded", "1 once the weights are on the device", "deployment", "revision")

        section("The embedder", "embedder")
        self.embedding_duration = histogram("vla_embedding_duration_seconds", "One batch: cache, models and all")
        self.embedding_cache = counter("vla_embedding_cache_total", "Vectors by where they came from", "result")
        self.embeddings_skipped = counter("vla_embeddings_skipped_total", "Requests without vectors, by why", "reason")

        section("The sinks", "sinks")
        self.sink_rows = counter("vla_sink_rows_total", "Rows written", "sink", "dataset")
        self.sink_skipped = counter(
            "vla_sink_skipped_total", "Records that became no row: repeat or consent", "sink", "dataset", "reason"
        )
        self.sink_bytes = counter("vla_sink_bytes_total", "Bytes of objects written", "sink", "dataset")
        self.sink_objects = counter("vla_sink_objects_total", "Objects written", "sink", "dataset")
        self.sink_flush_duration = histogram("vla_sink_flush_duration_seconds", "Time of one flush", "sink")
        self.sink_last_commit = gauge(
            "vla_sink_last_committed_timestamp_seconds", "Append time of the newest record that is at rest", "sink"
        )

        section("The ETL", "etl")
        self.etl_duration = histogram("vla_etl_duration_seconds", "One day's pipelines", "job")
        self.etl_last_success = gauge("vla_etl_last_success_timestamp_seconds", "When a job last ended well", "job")

        section("Every role", "every role")
        self.dependency_up = gauge("vla_dependency_up", "1 while a server that this process needs answers", "server")
        self.database_pool_size = gauge("vla_database_pool_size", "Connections to Postgres that this process may have")
        self.database_pool_in_use = gauge("vla_database_pool_in_use", "Of these, those in use")
        self.uptime = gauge("vla_uptime_seconds", "Seconds since this process became ready")

    def watch_pool(self, size: int, in_use: Callable[[], int]) -> None:
        """Report the database pool of this process. in_use: asked at each scrape."""
        self.database_pool_size.set(size)
        self.database_pool_in_use.set_function(in_use)

    def exposition(self) -> bytes:
        """The text exposition format of Prometheus."""
        return generate_latest(self.registry)
