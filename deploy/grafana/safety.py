"""The dashboard `safety`."""

from __future__ import annotations

from deploy.grafana.panels import Dashboard, Panel, Query
from deploy.grafana.queries import NONE_SO_FAR, quantiles, rate, sql

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
        Panel(title="Chunks checked", queries=rate("vla_safety_checks_total", "passed")),
        Panel(title="Refused by check", empty=NONE_SO_FAR, queries=rate("vla_safety_rejections_total", "check")),
        Panel(title="Scores", queries=quantiles("vla_safety_score", "model")),
        Panel(
            title="Too late to be safe",
            about="Requests refused because their deadline passed.",
            empty=NONE_SO_FAR,
            queries=rate("vla_deadline_drops_total", "stage"),
        ),
        Panel(
            title="Later completions dropped",
            empty=NONE_SO_FAR,
            queries=rate("vla_completions_dropped_total", "reason"),
        ),
        Panel(title="Answered again", empty=NONE_SO_FAR, queries=rate("vla_replays_total", "expired")),
        Panel(
            title="Incidents by severity",
            kind="bargauge",
            source="postgres",
            empty=NONE_SO_FAR,
            queries=sql(
                "SELECT severity, count(*) AS incidents FROM safety_incidents GROUP BY severity ORDER BY 2 DESC"
            ),
        ),
        Panel(
            title="Trend",
            kind="table",
            source="postgres",
            width=16,
            empty="the views were not refreshed yet",
            queries=sql(
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
            empty=NONE_SO_FAR,
            queries=sql(
                """SELECT created_at, severity, violation_type, action_taken, robot_type, model, safety_score
                FROM safety_incidents ORDER BY created_at DESC LIMIT 50"""
            ),
        ),
    ),
)
