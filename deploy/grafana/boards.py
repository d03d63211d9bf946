"""The four dashboards: operations, usage, safety, customers.

`python -m deploy.grafana.boards` writes them to deploy/grafana/dashboards; tests hold the files to this.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.panels import Dashboard, Panel, Query

FOLDER = Path(__file__).parent / "dashboards"

_NO_GPU = "no worker has a GPU"
_NONE_SO_FAR = "it has not happened"


def _quantiles(metric: str, by: str = "") -> tuple[Query, ...]:
    group, legend = (f"le, {by}", f" {{{{{by}}}}}") if by else ("le", "")
    return tuple(
        Query(f"histogram_quantile({q}, sum by ({group}) (rate({metric}_bucket[5m])))", f"p{round(q * 100)}{legend}")
        for q in (0.5, 0.95, 0.99)
    )


def _rate(metric: str, by: str, selector: str = "") -> tuple[Query, ...]:
    return (Query(f"sum by ({by}) (rate({metric}{selector}[5m]))", f"{{{{{by}}}}}"),)


def _gauge(metric: str, by: str) -> tuple[Query, ...]:
    return (Query(f"max by ({by}) ({metric})", " ".join(f"{{{{{label}}}}}" for label in by.split(", "))),)


def _sql(statement: str) -> tuple[Query, ...]:
    return (Query(" ".join(statement.split())),)


OPERATIONS = Dashboard(
    uid="vlastream-operations",
    title="vlastream: operations",
    about="Is everything there, does it keep up, and where does the time go?",
    panels=(
        Panel(title="Processes up", kind="stat", width=4, queries=(Query("sum(up)"),)),
        Panel(title="Live workers", kind="stat", width=4, queries=_gauge("vla_workers_live", "deployment")),
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
        Panel(title="Latency", unit="s", queries=_quantiles("vla_inference_duration_seconds")),
        Panel(
            title="Requests by how they ended", unit="reqps", queries=_rate("vla_inference_requests_total", "status")
        ),
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
        Panel(title="Requests that wait for a device", queries=_gauge("vla_queue_depth", "deployment")),
        Panel(title="Wait for the device", unit="s", queries=_quantiles("vla_queue_wait_seconds")),
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
        Panel(title="Records not finished, by group", queries=_gauge("vla_group_lag", "group")),
        Panel(title="Age of the oldest of them", unit="s", queries=_gauge("vla_group_oldest_age_seconds", "group")),
        Panel(
            title="GPU utilization",
            unit="percent",
            empty=_NO_GPU,
            queries=_gauge("vla_gpu_utilization_percent", "worker, device"),
        ),
        Panel(
            title="GPU memory",
            unit="percent",
            empty=_NO_GPU,
            queries=_gauge("vla_gpu_memory_utilization_percent", "worker, device"),
        ),
        Panel(
            title="GPU temperature",
            unit="celsius",
            empty=_NO_GPU,
            queries=_gauge("vla_gpu_temperature_celsius", "worker, device"),
        ),
        Panel(title="Servers that answer", queries=_gauge("vla_dependency_up", "role, server")),
        Panel(title="Records to Kafka", unit="cps", queries=_rate("vla_records_produced_total", "topic")),
        Panel(title="Acknowledged after", unit="s", queries=_quantiles("vla_produce_duration_seconds")),
        Panel(title="Rows written", unit="cps", queries=_rate("vla_sink_rows_total", "dataset")),
        Panel(title="Dead letters", empty=_NONE_SO_FAR, queries=_rate("vla_dead_letters_total", "reason")),
        Panel(title="Retries", empty=_NONE_SO_FAR, queries=_rate("vla_retries_total", "stage")),
        Panel(title="CPU", unit="percentunit", queries=_rate("process_cpu_seconds_total", "role")),
        Panel(
            title="Memory",
            unit="bytes",
            queries=(Query("sum by (role) (process_resident_memory_bytes)", "{{role}}"),),
        ),
        Panel(title="Connections to Postgres in use", queries=_gauge("vla_database_pool_in_use", "role, instance")),
    ),
)

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
        Panel(title="Requests by model", unit="reqps", queries=_rate("vla_inference_requests_total", "model")),
        Panel(
            title="Requests by robot type", unit="reqps", queries=_rate("vla_inference_requests_total", "robot_type")
        ),
        Panel(title="HTTP requests by route", unit="reqps", queries=_rate("vla_http_requests_total", "route")),
        Panel(
            title="Refused by the request gate",
            empty=_NONE_SO_FAR,
            queries=_rate("vla_validation_failures_total", "reason"),
        ),
        Panel(
            title="Never reached the log", empty=_NONE_SO_FAR, queries=_rate("vla_refused_before_produce_total", "code")
        ),
        Panel(title="No room", empty=_NONE_SO_FAR, queries=_rate("vla_admission_refusals_total", "reason")),
        Panel(title="What the request gate did", unit="reqps", queries=_rate("vla_gate_decisions_total", "decision")),
        Panel(title="Outcomes by code", unit="reqps", queries=_rate("vla_outcomes_total", "code")),
        Panel(title="Latency by model", unit="s", queries=_quantiles("vla_inference_duration_seconds", "model")),
        Panel(
            title="Embeddings from",
            empty="no customer allows any",
            queries=_rate("vla_embedding_cache_total", "result"),
        ),
        Panel(title="Bytes to the lake", unit="Bps", queries=_rate("vla_sink_bytes_total", "dataset")),
        Panel(
            title="Last night's jobs",
            kind="table",
            unit="dateTimeFromNow",
            empty="no night has passed",
            queries=_gauge("vla_etl_last_success_timestamp_seconds", "exported_job"),
        ),
    ),
)

SAFETY = Dashboard(
    uid="vlastream-safety",
    title="vlastream: safety",
    about="What do the gates let through, what not, and why?",
    panels=(
        Panel(
            title="Chunks that passed",
            kind="stat",
            width=6,
            unit="percentunit",
            queries=(
                Query('sum(rate(vla_safety_checks_total{passed="true"}[5m])) / sum(rate(vla_safety_checks_total[5m]))'),
            ),
        ),
        Panel(
            title="Refused chunks today",
            kind="stat",
            width=6,
            queries=(Query("sum(increase(vla_safety_rejections_total[1d])) or vector(0)"),),
        ),
        Panel(
            title="Median score",
            kind="stat",
            width=6,
            queries=(Query("histogram_quantile(0.5, sum by (le) (rate(vla_safety_score_bucket[5m])))"),),
        ),
        Panel(
            title="Answered 423 stopped",
            kind="stat",
            width=6,
            queries=(Query('sum(increase(vla_outcomes_total{code="stopped"}[1d])) or vector(0)'),),
        ),
        Panel(title="Chunks checked", queries=_rate("vla_safety_checks_total", "passed")),
        Panel(title="Refused by check", empty=_NONE_SO_FAR, queries=_rate("vla_safety_rejections_total", "check")),
        Panel(title="Scores", queries=_quantiles("vla_safety_score", "model")),
        Panel(
            title="Too late to be safe",
            about="Requests refused because their deadline passed.",
            empty=_NONE_SO_FAR,
            queries=_rate("vla_deadline_drops_total", "stage"),
        ),
        Panel(
            title="Later completions dropped",
            empty=_NONE_SO_FAR,
            queries=_rate("vla_completions_dropped_total", "reason"),
        ),
        Panel(title="Answered again", empty=_NONE_SO_FAR, queries=_rate("vla_replays_total", "expired")),
        Panel(
            title="Incidents by severity",
            kind="bargauge",
            source="postgres",
            empty=_NONE_SO_FAR,
            queries=_sql(
                "SELECT severity, count(*) AS incidents FROM safety_incidents GROUP BY severity ORDER BY 2 DESC"
            ),
        ),
        Panel(
            title="Trend",
            kind="table",
            source="postgres",
            width=16,
            empty="the views were not refreshed yet",
            queries=_sql(
                """SELECT date, robot_type, sum(checked) AS checked, avg(avg_safety_score) AS avg_score,
                min(min_safety_score) AS min_score, sum(incidents) AS incidents, sum(critical) AS critical
                FROM safety_trend GROUP BY date, robot_type ORDER BY date DESC LIMIT 60"""
            ),
        ),
        Panel(
            title="Latest incidents",
            kind="table",
            source="postgres",
            width=24,
            empty=_NONE_SO_FAR,
            queries=_sql(
                """SELECT created_at, severity, violation_type, action_taken, robot_type, model, safety_score
                FROM safety_incidents ORDER BY created_at DESC LIMIT 50"""
            ),
        ),
    ),
)

CUSTOMERS = Dashboard(
    uid="vlastream-customers",
    title="vlastream: customers",
    about="What each customer uses, gets and allows. From Postgres: no metric has a customer as its label.",
    panels=(
        Panel(
            title="Customers with requests today",
            kind="stat",
            width=6,
            source="postgres",
            queries=_sql(
                """SELECT count(DISTINCT customer_id) AS customers
                FROM inference_log WHERE created_at > now() - INTERVAL '1 day'"""
            ),
        ),
        Panel(
            title="Robots today",
            kind="stat",
            width=6,
            source="postgres",
            queries=_sql(
                """SELECT count(DISTINCT (customer_id, robot_id)) AS robots
                FROM inference_log WHERE created_at > now() - INTERVAL '1 day'"""
            ),
        ),
        Panel(
            title="429 a second",
            kind="stat",
            width=6,
            unit="reqps",
            queries=(Query('sum(rate(vla_http_requests_total{status="429"}[5m])) or vector(0)'),),
        ),
        Panel(
            title="401 and 403 a second",
            kind="stat",
            width=6,
            unit="reqps",
            queries=(Query('sum(rate(vla_http_requests_total{status=~"401|403"}[5m])) or vector(0)'),),
        ),
        Panel(
            title="Requests by customer",
            source="postgres",
            width=12,
            unit="reqps",
            queries=_sql(
                """SELECT date_trunc('minute', created_at) AS time, customer_id AS metric, count(*) / 60.0 AS value
                FROM inference_log WHERE created_at > now() - INTERVAL '6 hours' GROUP BY 1, 2 ORDER BY 1"""
            ),
        ),
        Panel(
            title="The last 24 hours",
            kind="table",
            source="postgres",
            width=12,
            queries=_sql(
                """SELECT customer_id, count(*) AS requests, count(DISTINCT robot_id) AS robots,
                round(100.0 * count(*) FILTER (WHERE status = 'success') / count(*), 2) AS success_percent,
                count(*) FILTER (WHERE status = 'safety_rejected') AS safety_rejected,
                percentile_cont(0.95) WITHIN GROUP (ORDER BY latency_total_ms) AS p95_ms,
                round((sum(latency_gpu_ms) / 1000)::numeric, 1) AS device_s
                FROM inference_log WHERE created_at > now() - INTERVAL '1 day' GROUP BY 1 ORDER BY 2 DESC LIMIT 100"""
            ),
        ),
        Panel(
            title="This month",
            kind="table",
            source="postgres",
            width=12,
            empty="the views were not refreshed yet",
            queries=_sql(
                """SELECT customer_id, month, total_inferences, robots, round(gpu_ms::numeric / 1000, 1) AS device_s
                FROM monthly_usage ORDER BY month DESC, total_inferences DESC LIMIT 100"""
            ),
        ),
        Panel(
            title="What they allow",
            kind="table",
            source="postgres",
            width=12,
            empty="no customer has said anything",
            queries=_sql(
                """SELECT customer_id, tier, anonymization_level, can_use_for_training, expires_at
                FROM customer_data_consent ORDER BY customer_id LIMIT 100"""
            ),
        ),
        Panel(
            title="Why they are refused",
            kind="table",
            source="postgres",
            width=12,
            empty=_NONE_SO_FAR,
            queries=_sql(
                """SELECT customer_id, code, count(*) AS requests FROM inference_log
                WHERE status <> 'success' AND created_at > now() - INTERVAL '1 day'
                GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 100"""
            ),
        ),
        Panel(
            title="What they say",
            kind="table",
            source="postgres",
            width=12,
            empty="nobody gave feedback",
            queries=_sql(
                """SELECT customer_id, feedback_type, count(*) AS given, avg(rating) AS avg_rating,
                avg(success::int) AS success_rate FROM feedback GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 100"""
            ),
        ),
        Panel(title="Keys looked up in", queries=_rate("vla_key_lookups_total", "source")),
        Panel(
            title="Over a limit",
            empty=_NONE_SO_FAR,
            queries=_rate("vla_limit_refusals_total", "limit"),
        ),
        Panel(
            title="Not kept for want of consent",
            empty="every customer allows everything",
            queries=_rate("vla_sink_skipped_total", "dataset", '{reason="consent"}'),
        ),
    ),
)

DASHBOARDS = (OPERATIONS, USAGE, SAFETY, CUSTOMERS)


def file_of(dashboard: Dashboard) -> Path:
    return FOLDER / f"{dashboard.uid.removeprefix('vlastream-')}.json"


def text_of(dashboard: Dashboard) -> str:
    return json.dumps(dashboard.document(), indent=1) + "\n"


if __name__ == "__main__":
    for one in DASHBOARDS:
        file_of(one).write_text(text_of(one))
