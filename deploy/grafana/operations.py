"""The dashboard `operations`."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query
from deploy.grafana.queries import NO_GPU, NONE_SO_FAR, gauge, quantiles, rate

OPERATIONS = Dashboard(
    uid="vlastream-operations",
    title="vlastream: operations",
    about="Is everything there, does it keep up, and where does the time go?",
    panels=(
        Panel(title="Processes up", kind="stat", width=4, queries=(Query("sum(up)"),)),
        Panel(title="Live workers", kind="stat", width=4, queries=gauge("vla_workers_live", "deployment")),
        Panel(
            title="Requests a second",
            kind="stat",
            width=4,
            unit="reqps",
            queries=(Query("sum(rate(vla_inference_requests_total[5m]))"),),
        ),
        Panel(
            title="Answered with actions",
            kind="stat",
            width=4,
            unit="percentunit",
            queries=(
                Query(
                    'sum(rate(vla_inference_requests_total{status="success"}[5m])) '
                    "/ sum(rate(vla_inference_requests_total[5m]))"
                ),
            ),
        ),
        Panel(
            title="Firing alerts",
            kind="stat",
            width=4,
            queries=(Query('count(ALERTS{alertstate="firing"}) or vector(0)'),),
        ),
        Panel(
            title="Estimated wait",
            kind="stat",
            width=4,
            unit="s",
            empty="nothing was finished of late",
            about="Requests that are not finished, at the rate at which they are.",
            queries=(
                Query(
                    "max by (deployment) (vla_deployment_lag) "
                    "/ (sum by (deployment) (rate(vla_batch_size_sum[5m])) > 0)",
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(title="Latency", unit="s", queries=quantiles("vla_inference_duration_seconds")),
        Panel(title="Requests by how they ended", unit="reqps", queries=rate("vla_inference_requests_total", "status")),
        Panel(
            title="Time in each stage (p95)",
            unit="s",
            queries=(
                Query(
                    "histogram_quantile(0.95, sum by (le, stage) (rate(vla_stage_duration_seconds_bucket[5m])))",
                    "{{stage}}",
                ),
            ),
        ),
        Panel(title="Requests that wait for a device", queries=gauge("vla_queue_depth", "deployment")),
        Panel(title="Wait for the device", unit="s", queries=quantiles("vla_queue_wait_seconds")),
        Panel(
            title="Mean batch",
            queries=(
                Query(
                    "sum by (deployment) (rate(vla_batch_size_sum[5m])) "
                    "/ sum by (deployment) (rate(vla_batch_size_count[5m]))",
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(
            title="Busy share of the devices",
            unit="percentunit",
            queries=(
                Query(
                    "sum by (deployment) (rate(vla_device_duration_seconds_sum[5m])) "
                    "/ max by (deployment) (vla_workers_live > 0)",
                    "{{deployment}}",
                ),
            ),
        ),
        Panel(title="Records not finished, by group", queries=gauge("vla_group_lag", "group")),
        Panel(title="Age of the oldest of them", unit="s", queries=gauge("vla_group_oldest_age_seconds", "group")),
        Panel(
            title="GPU utilization",
            unit="percent",
            empty=NO_GPU,
            queries=gauge("vla_gpu_utilization_percent", "worker, device"),
        ),
        Panel(
            title="GPU memory",
            unit="percent",
            empty=NO_GPU,
            queries=gauge("vla_gpu_memory_utilization_percent", "worker, device"),
        ),
        Panel(
            title="GPU temperature",
            unit="celsius",
            empty=NO_GPU,
            queries=gauge("vla_gpu_temperature_celsius", "worker, device"),
        ),
        Panel(title="Servers that answer", queries=gauge("vla_dependency_up", "role, server")),
        Panel(title="Records to Kafka", unit="cps", queries=rate("vla_records_produced_total", "topic")),
        Panel(title="Acknowledged after", unit="s", queries=quantiles("vla_produce_duration_seconds")),
        Panel(title="Rows written", unit="cps", queries=rate("vla_sink_rows_total", "dataset")),
        Panel(title="Dead letters", empty=NONE_SO_FAR, queries=rate("vla_dead_letters_total", "reason")),
        Panel(title="Retries", empty=NONE_SO_FAR, queries=rate("vla_retries_total", "stage")),
        Panel(title="CPU", unit="percentunit", queries=rate("process_cpu_seconds_total", "role")),
        Panel(
            title="Memory",
            unit="bytes",
            queries=(Query("sum by (role) (process_resident_memory_bytes)", "{{role}}"),),
        ),
        Panel(title="Connections to Postgres in use", queries=gauge("vla_database_pool_in_use", "role, instance")),
    ),
)
