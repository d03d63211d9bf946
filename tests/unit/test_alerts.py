"""Every alert has a test, a line in the runbook and series that exist; the dashboards' files are up to date."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.boards import DASHBOARDS, file_of, text_of
from deploy.grafana.panels import Dashboard
from runtime.metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: {**rule, "group": group["name"]}
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
}
KNOWN = {
    name + suffix
    for section in Metrics().catalogue
    for family in section.families
    for name in [family.name]
    for suffix in (("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",))
}


def unknown(expr: str) -> set[str]:
    return set(re.findall(r"\bvla_[a-z_]+", expr)) - KNOWN


def test_alerts_cover_every_theme() -> None:
    assert len(RULES) >= 18
    assert {rule["labels"]["theme"] for rule in RULES.values()} == {
        "requests", "services", "capacity", "gpus", "safety", "pipeline", "customers",
    }  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_how_severe_it_is_and_stands_on_metrics_that_exist(name: str) -> None:
    rule = RULES[name]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert rule["labels"]["theme"] == rule["group"]
    assert rule["annotations"]["summary"]
    assert not unknown(rule["expr"])


def test_every_alert_has_its_place_in_the_runbook_and_no_place_is_left_over() -> None:
    sections = re.split(r"^### ", (ROOT / "docs" / "runbook.md").read_text(), flags=re.MULTILINE)[1:]
    told = {section.partition("\n")[0]: section.partition("\n")[2].strip() for section in sections}
    assert list(told) == list(RULES)
    assert all(told.values())


def test_every_alert_is_tested_for_both_when_it_fires_and_when_it_is_quiet() -> None:
    tested: Counter[str] = Counter()
    for name in ("alerts_test.yml", "alerts_of_days_test.yml"):
        for case in yaml.safe_load((PROMETHEUS / name).read_text())["tests"]:
            quiet, fires = case["promql_expr_test"]
            assert f'alertname="{case["name"]}"' in quiet["expr"] == fires["expr"]
            assert "exp_samples" not in quiet
            assert fires["exp_samples"] == [{"value": 1}]
            tested[case["name"]] += 1
    assert tested == dict.fromkeys(RULES, 1)


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.uid)
def test_a_dashboard_is_up_to_date_and_asks_for_metrics_that_exist(dashboard: Dashboard) -> None:
    assert file_of(dashboard).read_text() == text_of(dashboard), "run `make docs`"
    titles = Counter(panel.title for panel in dashboard.panels)
    assert set(titles.values()) == {1}
    for panel in dashboard.panels:
        for query in panel.queries:
            assert panel.source == "postgres" or not unknown(query.expr), query.expr


def test_there_are_four_dashboards() -> None:
    assert [dashboard.uid.partition("-")[2] for dashboard in DASHBOARDS] == [
        "operations", "usage", "safety", "customers",
    ]  # fmt: skip
