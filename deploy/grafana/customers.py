"""The dashboard `customers`."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query
from deploy.grafana.queries import NONE_SO_FAR, rate, sql

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
            queries=sql(
                """SELECT count(DISTINCT customer_id) AS customers
                FROM inference_log WHERE created_at > now() - INTERVAL '1 day'"""
            ),
        ),
        Panel(
            title="Robots today",
            kind="stat",
            width=6,
            source="postgres",
            queries=sql(
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
            queries=sql(
                """SELECT date_trunc('minute', created_at) AS time, customer_id AS metric, count(*) / 60.0 AS value
                FROM inference_log WHERE created_at > now() - INTERVAL '6 hours' GROUP BY 1, 2 ORDER BY 1"""
            ),
        ),
        Panel(
            title="The last 24 hours",
            kind="table",
            source="postgres",
            width=12,
            queries=sql(
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
            queries=sql(
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
            queries=sql(
                """SELECT customer_id, tier, anonymization_level, can_use_for_training, expires_at
                FROM customer_data_consent ORDER BY customer_id LIMIT 100"""
            ),
        ),
        Panel(
            title="Why they are refused",
            kind="table",
            source="postgres",
            width=12,
            empty=NONE_SO_FAR,
            queries=sql(
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
            queries=sql(
                """SELECT customer_id, feedback_type, count(*) AS given, avg(rating) AS avg_rating,
                avg(success::int) AS success_rate FROM feedback GROUP BY 1, 2 ORDER BY 3 DESC LIMIT 100"""
            ),
        ),
        Panel(title="Keys looked up in", queries=rate("vla_key_lookups_total", "source")),
        Panel(
            title="Over a limit",
            empty=NONE_SO_FAR,
            queries=rate("vla_limit_refusals_total", "limit"),
        ),
        Panel(
            title="Not kept for want of consent",
            empty="every customer allows everything",
            queries=rate("vla_sink_skipped_total", "dataset", '{reason="consent"}'),
        ),
    ),
)
