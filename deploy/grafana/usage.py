"""The dashboard `usage`."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query
from deploy.grafana.queries import NONE_SO_FAR, gauge, quantiles, rate

USAGE = Dashboard(
    uid="vlastream-usage",
    title="vlastream: usage",
    about="Who asks for what, how often, and what is refused?",
    panels=(
        Panel(
            title="Requests today",
            kind="stat",
            width=6,
            queries=(Query("sum(increase(vla_inference_requests_total[1d]))"),),
        ),
        Panel(
            title="Compared with yesterday",
            kind="stat",
            width=6,
            unit="percentunit",
            empty="the system is younger than a day",
            queries=(
                Query(
                    "sum(rate(vla_inference_requests_total[1h])) "
                    "/ sum(rate(vla_inference_requests_total[1h] offset 1d))"
                ),
            ),
        ),
        Panel(
            title="Device seconds today",
            kind="stat",
            width=6,
            unit="s",
            queries=(Query("sum(increase(vla_device_duration_seconds_sum[1d]))"),),
        ),
        Panel(
            title="Feedback for each answer",
            kind="stat",
            width=6,
            unit="percentunit",
            empty="nobody gave any",
            queries=(
                Query(
                    'sum(increase(vla_sink_rows_total{sink="sink-postgres",dataset="feedback"}[1d])) '
                    '/ sum(increase(vla_inference_requests_total{status="success"}[1d]))'
                ),
            ),
        ),
        Panel(title="Requests by model", unit="reqps", queries=rate("vla_inference_requests_total", "model")),
        Panel(title="Requests by robot type", unit="reqps", queries=rate("vla_inference_requests_total", "robot_type")),
        Panel(title="HTTP requests by route", unit="reqps", queries=rate("vla_http_requests_total", "route")),
        Panel(
            title="Refused by the request gate",
            empty=NONE_SO_FAR,
            queries=rate("vla_validation_failures_total", "reason"),
        ),
        Panel(
            title="Never reached the log", empty=NONE_SO_FAR, queries=rate("vla_refused_before_produce_total", "code")
        ),
        Panel(title="No room", empty=NONE_SO_FAR, queries=rate("vla_admission_refusals_total", "reason")),
        Panel(title="What the request gate did", unit="reqps", queries=rate("vla_gate_decisions_total", "decision")),
        Panel(title="Outcomes by code", unit="reqps", queries=rate("vla_outcomes_total", "code")),
        Panel(title="Latency by model", unit="s", queries=quantiles("vla_inference_duration_seconds", "model")),
        Panel(
            title="Embeddings from",
            empty="no customer allows any",
            queries=rate("vla_embedding_cache_total", "result"),
        ),
        Panel(title="Bytes to the lake", unit="Bps", queries=rate("vla_sink_bytes_total", "dataset")),
        Panel(
            title="Last night's jobs",
            kind="table",
            unit="dateTimeFromNow",
            empty="no night has passed",
            queries=gauge("vla_etl_last_success_timestamp_seconds", "exported_job"),
        ),
    ),
)
